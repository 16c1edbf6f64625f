"""Dockerfile and compose files: judged by hadolint and docker-compose, and held to our own rules."""

import ast
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire.config.settings import ServeSettings

pytestmark = pytest.mark.ship

PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*")


@pytest.fixture(scope="module")
def composed(run: Callable[..., str]) -> Any:
    """docker-compose.yml as docker-compose understands it."""
    return yaml.safe_load(run("docker-compose", "-f", "docker-compose.yml", "config"))


def stages(repository: Path) -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions by stage, those of the stages it builds on first."""
    text = re.sub(r"\\\n", " ", (repository / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parent, _, current = rest.partition(" AS ")
            found[current] = [*found.get(parent, [])]
        found[current].append((word, rest.strip()))
    return found


def last(instructions: list[tuple[str, str]], word: str) -> str:
    return [rest for name, rest in instructions if name == word][-1]


def test_hadolint_has_no_complaint(run: Callable[..., str]) -> None:
    assert run("hadolint", "Dockerfile") == ""


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_quire_as_nobody_special(repository: Path, target: str) -> None:
    image = stages(repository)[target]
    assert last(image, "USER") == "10001:10001"
    assert image[-1][0] == "USER", "nothing is added as root after the user is set"
    assert ast.literal_eval(last(image, "ENTRYPOINT")) == ["quire", "serve", "--host", "0.0.0.0"]
    assert "/livez" in last(image, "HEALTHCHECK")
    assert "PYTHONSAFEPATH=1" in last([item for item in image if "PATH=" in item[1]], "ENV")
    assert PINNED.match(image[0][1])
    assert not any(word == "ADD" for word, _ in image)


def test_only_the_cuda_image_has_a_compiler(repository: Path) -> None:
    found = stages(repository)
    assert "gcc" not in " ".join(rest for _, rest in found["cpu"])
    assert "gcc" in " ".join(rest for _, rest in found["cuda"])


def test_the_default_image_is_the_cpu_one(repository: Path) -> None:
    assert list(stages(repository))[-1] == "cpu"


def test_the_build_context_is_what_the_wheel_is_made_of(repository: Path) -> None:
    lines = (repository / ".dockerignore").read_text().split()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert re.search(r"^\*$", (repository / ".dockerignore").read_text(), re.MULTILINE)
    assert allowed == {
        "pyproject.toml", "setup.py", project["readme"], *project["license-files"],
        "server", "pipelines", "kernels", "config",
    }  # fmt: skip


def test_compose_services_are_hardened(composed: Any) -> None:
    assert set(composed["services"]) == {"quire", "prometheus", "grafana"}
    for name, service in composed["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert PINNED.fullmatch(service["image"]), name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["pids_limit"] > 0, name
        assert "privileged" not in service and "cap_add" not in service, name


def test_only_the_api_is_published_beyond_this_machine(composed: Any) -> None:
    for name, service in composed["services"].items():
        for port in service["ports"]:
            assert name == "quire" or str(port).startswith("127.0.0.1:"), (name, port)
    quire = composed["services"]["quire"]
    assert "--insecure" not in quire["command"]
    assert "--api-key-file" in quire["command"]


def test_docker_waits_longer_than_quire_drains(composed: Any) -> None:
    grace = composed["services"]["quire"]["stop_grace_period"]
    drain = ServeSettings.model_fields["shutdown_timeout"].default
    assert float(str(grace).removesuffix("s")) >= drain + 2


def test_compose_commands_are_options_of_quire(composed: Any) -> None:
    options = {f"--{name.replace('_', '-')}" for name in ServeSettings.model_fields}
    given = [word for word in composed["services"]["quire"]["command"] if word.startswith("--")]
    assert given and set(given) <= options


def test_what_compose_mounts_from_the_repository_exists(composed: Any, repository: Path) -> None:
    mounted = []
    for service in composed["services"].values():
        for volume in service["volumes"]:
            source, _, rest = volume.partition(":")
            if source.startswith("/"):
                assert Path(source).is_relative_to(repository) and Path(source).is_dir()
                assert rest.endswith(":ro")
                mounted.append(Path(source).name)
    assert sorted(mounted) == ["grafana", "prometheus"]


def test_the_monitoring_files_name_the_services_and_paths_of_compose(
    composed: Any, repository: Path
) -> None:
    monitoring = repository / "config/monitoring"
    scrape = yaml.safe_load((monitoring / "prometheus/prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["quire:8000"]
    secret = Path(job["authorization"]["credentials_file"])
    used = [
        item["source"] if isinstance(item, dict) else item
        for item in composed["services"]["prometheus"]["secrets"]
    ]
    assert used == [secret.name] and str(secret.parent) == "/run/secrets"
    source = yaml.safe_load((monitoring / "grafana/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    boards = yaml.safe_load((monitoring / "grafana/dashboards/quire.yml").read_text())
    assert boards["providers"][0]["options"]["path"] == "/etc/grafana/provisioning/dashboards"
    home = composed["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert (monitoring / "grafana" / Path(home).relative_to("/etc/grafana/provisioning")).is_file()


def test_the_gpu_file_asks_for_gpus_and_changes_nothing_else(
    run: Callable[..., str], composed: Any
) -> None:
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml")
    with_gpu = yaml.safe_load(run("docker-compose", *files, "config"))
    quire = with_gpu["services"]["quire"]
    (device,) = quire.pop("deploy")["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert quire["build"].pop("target") == "cuda"
    assert quire.pop("image").endswith("-cuda")
    plain = composed["services"]["quire"]
    assert {key: value for key, value in plain.items() if key not in ("image", "build")} == {
        key: value for key, value in quire.items() if key != "build"
    }
