import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import huggingface_hub
import huggingface_hub.constants
import pytest

from quire.config.errors import ConfigError, ModelError
from quire.pipelines.hf import (
    HuggingFaceRepo,
    download_weight_files,
    resolve_model,
    validate_hf_repo_access,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 400,
    "consolidated.safetensors": b"the weights again",
    "pytorch_model.bin": b"code",
    "weights.pt": b"code",
    "modeling_custom.py": b"import os",
    "onnx/model.json": b"{}",
    "README.md": b"hello",
}
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


@dataclass
class Hub:
    """A hub on localhost with one model, `org/model`; the other names answer with errors."""

    files: dict[str, bytes]
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    cut_after: int | None = None
    """Bytes of the weights after which the connection breaks, once."""

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.requests.append(f"{handler.command} {path}")
        for name, status, code in (
            ("/org/gated", 403, "GatedRepo"),
            ("/org/missing", 401, "RepoNotFound"),
            ("/org/broken", 500, ""),
        ):
            if name in path:
                return self.send(handler, status, b"{}", {"X-Error-Code": code} if code else {})
        if path == f"/api/models/org/model/tree/{COMMIT}":
            return self.send(handler, 200, json.dumps(self.tree()).encode())
        if path in ("/api/models/org/model/revision/main", "/api/models/org/model/revision/v1"):
            info = {"id": "org/model", "sha": COMMIT, "siblings": []}
            return self.send(handler, 200, json.dumps(info).encode())
        if path.startswith("/api/models/org/model/revision/"):
            return self.send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self.send_file(handler, unquote(path.rpartition(f"/resolve/{COMMIT}/")[2]))

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files.items()
        ]

    def send_file(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        data = self.files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        first = 0
        if wanted := handler.headers.get("Range"):
            first = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self.requests.append(f"RANGE {first} {name}")
        self.send(handler, 206 if first else 200, data[first:], headers)

    def send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if self.cut_after is not None and len(body) > self.cut_after:
            body, self.cut_after = body[: self.cut_after], None
            handler.close_connection = True
        handler.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = Hub(dict(FILES))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.reply(self)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def test_the_demo_model_is_in_the_package() -> None:
    folder = resolve_model("quire-demo")

    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_downloads_weights_and_texts_but_nothing_that_runs_code(hub: Hub, tmp_path: Path) -> None:
    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert {path.name for path in folder.iterdir()} == WANTED
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)


def test_a_cached_snapshot_is_used_without_asking_the_hub(hub: Hub, tmp_path: Path) -> None:
    first = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    hub.requests.clear()

    again = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert again == first
    assert hub.requests == []


def test_a_snapshot_that_lacks_a_file_is_completed(hub: Hub, tmp_path: Path) -> None:
    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    (folder / "model.safetensors").unlink()

    again = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert (again / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    # The library keeps whole chunks of 10 MiB.
    hub.files["model.safetensors"] = bytes(range(256)) * 4 * 1024 * 12
    hub.cut_after = 11 * 1024**2

    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert f"RANGE {10 * 1024**2} model.safetensors" in hub.requests
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_named_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    folder = resolve_model("org/model", "v1", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert folder.name == COMMIT
    assert "GET /api/models/org/model/revision/v1" in hub.requests


@pytest.mark.parametrize(
    ("model", "revision", "sentence"),
    [
        ("org/gated", None, "org/gated is gated"),
        ("org/missing", None, "org/missing is not on the hub, or is private"),
        ("org/model", "v9", "org/model has no revision 'v9'"),
        ("org/broken", None, "org/broken cannot be downloaded: .*500"),
    ],
)
def test_each_refusal_of_the_hub_has_its_sentence(
    hub: Hub, tmp_path: Path, model: str, revision: str | None, sentence: str
) -> None:
    with pytest.raises(ModelError, match=f"^model: {sentence}") as caught:
        resolve_model(model, revision, endpoint=hub.endpoint, cache_dir=tmp_path)

    assert "\n" not in str(caught.value)


def test_a_repository_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"], hub.files["consolidated.safetensors"]

    with pytest.raises(ModelError, match=r"org/model has no \.safetensors or \.gguf weights"):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)


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


def test_of_several_gguf_files_one_must_be_named(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    hub.files |= {"a-q4.gguf": b"4", "a-q8.gguf": b"8"}

    with pytest.raises(ModelError, match=r"give one, as org/model:a-q4.gguf, of a-q4.gguf, a-q8"):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["a-q4.gguf", "q8/a+b-q8.gguf"])
@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_gguf_file_of_a_repository(
    hub: Hub, tmp_path: Path, name: str, revision: str | None
) -> None:
    hub.files |= {"a-q4.gguf": b"4", "q8/a+b-q8.gguf": b"8"}
    where: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path}

    path = resolve_model(f"org/model:{name}", revision, **where)

    assert path.read_bytes() == hub.files[name]
    assert str(path).endswith(f"snapshots/{COMMIT}/{name}")
    assert got(hub) == {quote(name.rpartition("/")[2])}
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


def test_a_hub_that_cannot_be_reached_is_named_as_such(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"org/model cannot be downloaded: .*[Cc]onnect"):
        resolve_model("org/model", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)


def test_offline_and_not_cached_says_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(
        ModelError, match="org/model is not in the cache, and HF_HUB_OFFLINE is set"
    ):
        resolve_model("org/model", cache_dir=tmp_path)


def test_offline_uses_the_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    assert HuggingFaceRepo("org/model", cache_dir=tmp_path).cached() == folder


@pytest.mark.parametrize(
    "model",
    [
        *("no-such-folder", "./models/llama", "/models/llama", "a/b/c", "org/../x", "", "~/nope"),
        *("org/name:", "org/name:x.bin", "org/name:../x.gguf", "org/name:/x.gguf", "a" * 5000),
        *("org/name:.x.gguf", "org/name:a//x.gguf", "org/name:a/./x.gguf", "org/na\0me"),
        *("org/name:a\\x.gguf", "org/name:-x.gguf", "org/name:x.gguf\n", "name:x.gguf"),
    ],
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(model: str) -> None:
    with pytest.raises(
        ModelError, match="is neither an existing folder or .gguf file, nor quire-demo, nor a hub"
    ):
        resolve_model(model)


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()

    with pytest.raises(ModelError, match="is a file; give the folder .*, or a .gguf file"):
        resolve_model(str(path))


def test_a_gguf_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()

    assert resolve_model(str(path)) == path
    with pytest.raises(ConfigError, match="load_format: safetensors was given, but"):
        resolve_model(str(path), load_format="safetensors")


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="revision: v1 was given, but .* is not on the hub"):
        resolve_model(str(tmp_path), "v1")
