"""A hub on localhost, which the tests of downloads ask instead of the real one."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

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
        if name not in self.files:
            self.send(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
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


@contextmanager
def running_hub() -> Iterator[Hub]:
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
