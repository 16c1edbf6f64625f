import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from quire.config.errors import ModelError
from quire.pipelines.hf import HuggingFaceRepo, resolve_model

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
        return self.send_file(handler, path.rpartition(f"/resolve/{COMMIT}/")[2])

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

    with pytest.raises(ModelError, match=r"org/model has no \.safetensors weights"):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)


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
    ["no-such-folder", "./models/llama", "/models/llama", "a/b/c", "org/../x", "", "~/nope"],
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(model: str) -> None:
    with pytest.raises(
        ModelError, match="is neither an existing folder, nor quire-demo, nor a hub"
    ):
        resolve_model(model)


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()

    with pytest.raises(ModelError, match="is a file; give the folder"):
        resolve_model(str(path))


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="revision: v1 was given, but .* is not on the hub"):
        resolve_model(str(tmp_path), "v1")
