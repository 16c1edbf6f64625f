"""Which files of a hub repository are fetched, and what is said when they cannot be."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import huggingface_hub.constants
import pytest
from fake_hub import COMMIT, WANTED, Hub, running_hub

from quire.config.errors import ModelError
from quire.pipelines.hf import (
    HuggingFaceRepo,
    download_weight_files,
    resolve_model,
    validate_hf_repo_access,
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with running_hub() as hub:
        yield hub


SHARDS = {f"model-0000{i}-of-00003.safetensors": bytes([i]) * 1000 for i in (1, 2, 3)}


def shard_index(names: Iterable[str], suffix: str = "safetensors") -> dict[str, bytes]:
    weight_map = {f"tensor{number}": name for number, name in enumerate(names)}
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    return {f"{name}.index.json": json.dumps({"weight_map": weight_map}).encode()}


def got(hub: Hub) -> set[str]:
    """The files that were fetched."""
    return {
        line.rpartition("/")[2]
        for line in hub.requests
        if line.startswith("GET ") and "/resolve/" in line
    }


def test_only_the_shards_that_the_index_names_are_fetched(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    hub.files |= {**SHARDS, **shard_index([*SHARDS][:2]), "model-q4.gguf": b"x"}

    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert got(hub) == (WANTED - {"model.safetensors"}) | set([*SHARDS][:2]) | {
        "model.safetensors.index.json"
    }
    hub.requests.clear()
    assert resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path) == folder
    assert hub.requests == []
    (folder / [*SHARDS][1]).unlink()
    assert HuggingFaceRepo("org/model", cache_dir=tmp_path).cached() is None


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"tensor": "../evil.safetensors"}, "expected names of safetensors files, found '../evil"),
        ({"tensor": "evil.bin"}, "expected names of safetensors files, found 'evil.bin'"),
        ({"tensor": 7}, "tensor: expected a string, found 7"),
        ({"tensor": "gone.safetensors"}, "org/model has no file gone.safetensors, which its index"),
    ],
)
def test_an_index_names_files_of_the_repository_only(
    hub: Hub, tmp_path: Path, index: dict[str, object], message: str
) -> None:
    del hub.files["model.safetensors"]
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()

    with pytest.raises(ModelError, match=message):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert not {name for name in got(hub) if not name.endswith((".json", ".jinja"))}


def test_the_format_that_is_asked_for_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files["model-q4.gguf"] = b"gguf"
    texts = WANTED - {"model.safetensors"}
    for load_format, weights in (
        ("random", set()),
        ("gguf", {"model-q4.gguf"}),
        ("pytorch", {"pytorch_model.bin"}),
        ("auto", {"model.safetensors"}),
    ):
        hub.requests.clear()

        folder = resolve_model(
            "org/model", load_format=load_format, endpoint=hub.endpoint, cache_dir=tmp_path
        )

        assert got(hub) - texts == weights
        assert folder.is_dir() or {folder.name} == weights
        assert all(
            (folder if folder.is_dir() else folder.parent).joinpath(name).is_file()
            for name in texts | weights
        )
        hub.requests.clear()
        resolve_model(
            "org/model", load_format=load_format, endpoint=hub.endpoint, cache_dir=tmp_path
        )
        assert hub.requests == []


def test_a_repository_with_one_gguf_model_alone_is_that_file(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    hub.files["a-q4.gguf"] = b"4"

    path = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert (path.name, path.read_bytes()) == ("a-q4.gguf", b"4")
    hub.requests.clear()
    assert resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path) == path
    assert hub.requests == []


def test_of_several_gguf_files_one_must_be_named(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    hub.files |= {"a-q4.gguf": b"4", "a-q8.gguf": b"8"}

    with pytest.raises(ModelError, match=r"give one, as org/model:a-q4.gguf, of a-q4.gguf, a-q8"):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "name", ["a-q4.gguf", "q8/a+b-q8.gguf", "b--q8.gguf", "My Model/a..b (1)[x]=@,~.gguf"]
)
@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_gguf_file_of_a_repository(
    hub: Hub, tmp_path: Path, name: str, revision: str | None
) -> None:
    hub.files |= {"a-q4.gguf": b"4", name: b"8"}
    where: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path}

    path = resolve_model(f"org/model:{name}", revision, **where)

    assert path.read_bytes() == hub.files[name]
    assert str(path).endswith(f"snapshots/{COMMIT}/{name}")
    assert {unquote(found) for found in got(hub)} == {name.rpartition("/")[2]}
    assert f"GET /api/models/org/model/revision/{revision or 'main'}" in hub.requests
    hub.requests.clear()
    assert resolve_model(f"org/model:{name}", revision, **where) == path
    assert hub.requests == []


def test_a_split_gguf_model_is_fetched_whole(hub: Hub, tmp_path: Path) -> None:
    parts = {f"q4/a-0000{i}-of-00002.gguf": bytes([i]) for i in (1, 2)}
    hub.files |= parts
    first, second = parts

    path = resolve_model(f"org/model:{first}", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert path.read_bytes() == parts[first]
    assert (path.parent / Path(second).name).read_bytes() == parts[second]
    del hub.files[second]
    with pytest.raises(ModelError, match=f"org/model has no file {second}"):
        resolve_model(f"org/model:{first}", endpoint=hub.endpoint, cache_dir=tmp_path / "other")
    with pytest.raises(ModelError, match="expected the first file of 2"):
        resolve_model(f"org/model:{second}", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_a_local_folder_with_one_gguf_model_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "config.json").touch()

    assert resolve_model(str(tmp_path)) == tmp_path / "a.gguf"
    assert resolve_model(str(tmp_path), load_format="random") == tmp_path
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"several .gguf files; give one, as .*/a.gguf, of a.gguf"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(ModelError, match="several .gguf files"):
        resolve_model(str(tmp_path), load_format="gguf")


def test_a_gguf_file_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="org/model has no file b.gguf at revision 'main'"):
        resolve_model("org/model:b.gguf", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_every_file_is_of_the_commit_that_the_revision_was(hub: Hub, tmp_path: Path) -> None:
    resolve_model("org/model", "v1", endpoint=hub.endpoint, cache_dir=tmp_path)

    asked = [line for line in hub.requests if "/resolve/" in line or "/tree/" in line]
    assert asked and all(f"/{COMMIT}" in line for line in asked)


def test_a_disk_without_room_is_told_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("/"))(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(ModelError, match=r"org/model needs 0.0 GB, and 0.0 GB are free in /"):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert "model.safetensors" not in got(hub)


def test_a_disk_that_fills_up_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)

    with pytest.raises(ModelError, match="org/model cannot be downloaded: the disk is full"):
        HuggingFaceRepo("org/model", endpoint=hub.endpoint, cache_dir=tmp_path).download()


def test_the_functions_for_files_and_access(hub: Hub, tmp_path: Path) -> None:
    where: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path}
    hub.files |= SHARDS

    paths = download_weight_files("org/model", [*SHARDS], "v1", max_workers=2, **where)

    assert [path.read_bytes() for path in paths] == [*SHARDS.values()]
    with pytest.raises(ModelError, match="org/model has no file gone"):
        download_weight_files("org/model", ["gone"], **where)
    validate_hf_repo_access("org/model", "v1", endpoint=hub.endpoint)
    with pytest.raises(ModelError, match="org/gated is gated"):
        validate_hf_repo_access("org/gated", endpoint=hub.endpoint)


@pytest.mark.parametrize(
    "model", ["org/name.git", "org/name-", "org/name.", "org/" + "a" * 97, "org/name.git:a.gguf"]
)
def test_names_that_no_hub_has_are_one_sentence(hub: Hub, tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelError, match="is no name that a hub has$"):
        resolve_model(model, endpoint=hub.endpoint, cache_dir=tmp_path)

    assert hub.requests == []


@pytest.mark.parametrize("file", ["../b.gguf", "a/../b.gguf", "/b.gguf", ".b.gguf", "a//b.gguf"])
def test_a_file_outside_the_repository_is_no_model(hub: Hub, tmp_path: Path, file: str) -> None:
    with pytest.raises(ModelError, match="is neither an existing folder or .gguf file"):
        resolve_model(f"org/model:{file}", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert hub.requests == []


def test_the_home_of_nobody_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="is neither an existing folder"):
        resolve_model("~no-such-user/model")


def test_a_token_that_no_header_holds_is_one_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "gehe\u00efm")

    with pytest.raises(ModelError, match="org/model cannot be downloaded: HF_TOKEN is not ASCII"):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_processes_that_download_at_once_get_whole_files(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = bytes(range(256)) * 4 * 1024 * 4
    source = (
        "import sys; from pathlib import Path; from quire.pipelines.hf import resolve_model\n"
        "folder = resolve_model('org/model', endpoint=sys.argv[1], cache_dir=Path(sys.argv[2]))\n"
        "print((folder / 'model.safetensors').stat().st_size)"
    )
    command = [sys.executable, "-P", "-c", source, hub.endpoint, str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]

    sizes = [run.communicate(timeout=60)[0].strip() for run in runs]

    assert sizes == [str(4 * 1024**2)] * 2
