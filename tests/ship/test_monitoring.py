"""Rules and dashboard, judged by promtool and by a real Prometheus that scrapes a real server."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from fastapi import FastAPI
from starlette.middleware import Middleware

from quire.config.settings import ServeSettings
from quire.pipelines.core.messages import EngineStats, Ready, StepOutput
from quire.server.auth import AuthMiddleware, load_api_keys
from quire.server.health import build_health_router
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.middleware import RequestMiddleware
from quire.server.request_metrics import RequestTimes

pytestmark = pytest.mark.ship

KEY = "scrape-key"
MODEL = "quire-demo"
FAMILY = re.compile(r"\b(?:(?:vllm|quire):[a-z0-9_:]+|(?:quire|http|process)_[a-z0-9_]+)\b")
PROBES = {"livez", "readyz", "startupz", "health", "metrics"}


@pytest.fixture(scope="module")
def monitoring(repository: Path) -> Path:
    return repository / "config" / "monitoring"


def dashboard_expressions(monitoring: Path) -> list[str]:
    board = json.loads((monitoring / "grafana/dashboards/quire.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(found) > 40
    return found


def rules(monitoring: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((monitoring / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_family_of_the_dashboard_and_the_rules_is_one_of_ours(monitoring: Path) -> None:
    """Without a Prometheus, so that it is checked everywhere."""
    metrics = Metrics(MODEL)
    metrics.on_ready(
        Ready(1, os.getpid(), "cpu", "bfloat16", 512, 10, 32, 8, 2048, [("weights", 1000)], "")
    )
    metrics.http.on_request("/v1/completions", "POST", 200, 0.1, received=1, sent=1)
    text = metrics.render()[0].decode()
    shown = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    recorded = {rule["record"] for rule in rules(monitoring) if "record" in rule}
    texts = dashboard_expressions(monitoring) + [rule["expr"] for rule in rules(monitoring)]
    names = {name for text in texts for name in FAMILY.findall(text)}
    assert names - recorded <= shown


def test_every_alert_has_a_test(monitoring: Path, repository: Path) -> None:
    tests = yaml.safe_load((repository / "tests/ship/rules_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules(monitoring) if "alert" in rule}


def test_promtool_accepts_the_configuration_and_the_rules_do_what_they_say(
    monitoring: Path, repository: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    run("promtool", "check", "config", "--syntax-only", monitoring / "prometheus/prometheus.yml")
    run("promtool", "check", "rules", "--lint-fatal", monitoring / "prometheus/rules.yml")
    for source in (monitoring / "prometheus/rules.yml", repository / "tests/ship/rules_test.yml"):
        shutil.copy(source, tmp_path)
    assert "SUCCESS" in run("promtool", "test", "rules", "rules_test.yml", cwd=tmp_path)


def test_promtool_has_no_complaint_about_the_names_that_are_ours(run: Callable[..., str]) -> None:
    text = _metrics_after_traffic().render()[0].decode()
    ours = "".join(
        line
        for line in text.splitlines(keepends=True)
        if "vllm:" not in line and "_created" not in line
    )
    run("promtool", "check", "metrics", stdin=ours)


def test_panels_do_not_overlap_and_ids_are_unique(monitoring: Path) -> None:
    board = json.loads((monitoring / "grafana/dashboards/quire.json").read_text())
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def _load(metrics: Metrics, round_: int) -> None:
    """One request's worth of every event there is."""
    metrics.requests.on_prompt(20, 8)
    metrics.requests.on_first_token(0.05)
    metrics.requests.on_inter_token(0.02)
    reasons = ("stop", "length", "abort", "error")
    metrics.requests.on_request_end(
        RequestTimes(
            arrival=0.0,
            queue_seconds=0.01,
            first_token_at=0.05,
            last_token_at=0.07,
            ended_at=0.08,
            prompt_tokens=20,
            cached_tokens=8,
            generation_tokens=2,
            finish_reason=reasons[round_ % 4],  # type: ignore[arg-type]
            max_tokens=2,
        )
    )
    metrics.requests.on_choices_end(1, 2)
    status = 500 if round_ % 9 == 0 else 200
    metrics.http.on_request("/v1/completions", "POST", status, 0.08, received=90, sent=900)
    metrics.on_tool_parser(round_ % 2, route="/v1/chat/completions", is_streamed=round_ % 3 == 0)
    metrics.on_rejection("max_num_queued_reqs")
    metrics.on_rejection("max_concurrency_per_key")
    metrics.on_stale_frame()
    metrics.on_disconnect()
    metrics.on_slow_reader()
    metrics.on_deadline()
    metrics.on_spans(3, were_sent=True)
    stats = EngineStats(
        running=1, waiting=2, used_pages=3, cached_pages=4, total_pages=10,
        prefix_query_tokens=20 * round_, prefix_hit_tokens=8 * round_, preemptions=round_,
        prefill_tokens=12 * round_, decode_tokens=round_, steps=round_, step_seconds=0.01 * round_,
    )  # fmt: skip
    metrics.on_step(StepOutput(1, *[b""] * 6, {}, {}, 13, stats))


def _metrics_after_traffic() -> Metrics:
    metrics = Metrics(MODEL)
    metrics.on_worker_restart()
    metrics.on_resumed(2)
    metrics.requests.on_corrupted()
    metrics.on_ready(
        Ready(1, os.getpid(), "cpu", "bfloat16", 512, 10, 32, 8, 2048, [("weights", 1000)], "")
    )
    for round_ in range(1, 10):
        _load(metrics, round_)
    return metrics


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with a key whose metrics move all the time."""
    key_file = tmp_path_factory.mktemp("key") / "keys"
    key_file.write_text(f"# scrape\n{KEY}\n")
    keys = load_api_keys(ServeSettings(api_key_file=key_file))
    metrics, lifecycle = _metrics_after_traffic(), Lifecycle()
    metrics.watch(lifecycle)
    lifecycle.on_ready()
    app = FastAPI(
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics),
            Middleware(AuthMiddleware, keys=keys),
        ]
    )
    app.include_router(build_health_router(lifecycle, metrics))
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    stop = threading.Event()

    def load() -> None:
        round_ = 10
        while not stop.wait(0.02):
            _load(metrics, round_)
            round_ += 1

    threads = [threading.Thread(target=server.run), threading.Thread(target=load)]
    for thread in threads:
        thread.start()
    while not server.started:
        assert threads[0].is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    stop.set()
    server.should_exit = True
    for thread in threads:
        thread.join(10)


def _query(url: str, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}{path}?{query}", timeout=10) as reply:
        return json.load(reply)["data"]


@pytest.fixture(scope="module")
def prometheus(
    monitoring: Path, scraped: int, tool: Callable[[str], str], tmp_path_factory: Any
) -> Iterator[str]:
    """A Prometheus with the shipped configuration: only target, key path and pace are the test's."""
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = yaml.safe_load((monitoring / "prometheus/prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    (job,) = configuration["scrape_configs"]
    job["authorization"]["credentials_file"] = str(folder / "api_key")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{scraped}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (folder / "api_key").write_text(f"{KEY}\n")
    shutil.copy(monitoring / "prometheus/rules.yml", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [
            tool("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://{address}"
    try:
        _wait_for_rates(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _wait_for_rates(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "prometheus ended"
        with contextlib.suppress(OSError, KeyError):
            if _query(url, "/api/v1/query", query="quire:http_requests:error_ratio_5m > 0")[
                "result"
            ]:
                return
        time.sleep(0.2)
    raise AssertionError(_query(url, "/api/v1/targets"))


def test_every_query_of_the_dashboard_returns_numbers(monitoring: Path, prometheus: str) -> None:
    for expression in dashboard_expressions(monitoring):
        query = expression.replace("$model_name", MODEL).replace("$__rate_interval", "1m")
        result = _query(prometheus, "/api/v1/query", query=query)["result"]
        assert result, f"no series: {query}"
        assert any(series["value"][1] != "NaN" for series in result), f"only NaN: {query}"


def test_every_family_in_use_is_there(monitoring: Path, prometheus: str) -> None:
    texts = dashboard_expressions(monitoring) + [rule["expr"] for rule in rules(monitoring)]
    names = {name for text in texts for name in FAMILY.findall(text)}
    recorded = {rule["record"] for rule in rules(monitoring) if "record" in rule}
    assert len(names) > 40 and recorded - names == {
        "quire:generation_tokens:rate_5m",
        "quire:inter_token_latency_seconds:p95_5m",
        "quire:prefix_cache_hits:ratio_5m",
    }
    for name in sorted(names | recorded):
        assert _query(prometheus, "/api/v1/query", query=name)["result"], f"no series: {name}"


def test_the_dashboard_variable_finds_the_model(monitoring: Path, prometheus: str) -> None:
    board = json.loads((monitoring / "grafana/dashboards/quire.json").read_text())
    (variable,) = board["templating"]["list"]
    family, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
    found = _query(prometheus, f"/api/v1/label/{label}/values", **{"match[]": family})
    assert found == [MODEL]


def test_the_rules_are_loaded_and_healthy(prometheus: str, monitoring: Path) -> None:
    groups = _query(prometheus, "/api/v1/rules")["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert len(loaded) == len(rules(monitoring))
    assert {rule["health"] for rule in loaded} == {"ok"}
    firing = {rule["name"] for rule in loaded if rule.get("state") == "firing"}
    # The test's worker died before the first scrape, so its count never rose.
    assert firing == set()


def test_a_wrong_scrape_key_is_a_target_down(scraped: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{scraped}/metrics", headers={"Authorization": "Bearer wrong"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)
