"""The admin listener: its routes, its door, and that the public port has none of them."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from quire.config.settings import ServeSettings
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import Ready, ResetPrefixCache
from quire.pipelines.core.sampling_params import SamplingParams
from quire.server.admin import build_admin_app
from quire.server.auth import load_admin_keys, load_api_keys
from quire.server.engine import Caller, Origin
from quire.server.engine_client import EngineClient
from quire.server.errors import EngineUnavailable
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics

ROUTES = [
    ("POST", "/reset_prefix_cache"),
    ("GET", "/v1/requests"),
    ("GET", "/v1/requests/some-id"),
    ("POST", "/drain"),
    ("POST", "/log-level"),
]
JSON = [("Content-Type", "application/json")]


class Admin:
    """An admin listener over a client whose worker is a list of messages."""

    def __init__(self, serve: Callable[..., Any], **options: Any) -> None:
        settings = ServeSettings(**options)
        self.lifecycle, metrics = Lifecycle(), Metrics("demo")
        self.client = EngineClient(4, self.lifecycle, metrics)
        self.sent: list[Any] = []
        ready = Ready(1, 1, "cpu", "float32", 128, 64, 16, 8, 2048, [], "")
        self.client.attach(ready, self.sent.append)
        self.lifecycle.on_ready()
        keys = load_admin_keys(settings, load_api_keys(settings))
        app = build_admin_app(settings, self.client, keys, metrics, self.lifecycle)
        self.server = serve(app)
        self.request = self.server.request

    def submit(self, request_id: str) -> None:
        prompt = np.array([5, 6, 7], np.int32)
        context = TextContext(
            self.client.new_request_id(), prompt, SamplingParams(), max_length=128
        )
        origin = Origin(request_id=request_id, caller=Caller("team-a", "team-a"))
        self.client.submit([context], origin)


@pytest.fixture
def admin(serve: Callable[..., Any]) -> Admin:
    return Admin(serve)


def test_the_prefix_cache_is_reset_in_the_worker(admin: Admin) -> None:
    reply = admin.request("POST", "/reset_prefix_cache")

    assert (reply.status, reply.json) == (200, {"status": "reset"})
    assert admin.sent == [ResetPrefixCache(1)]


def test_requests_are_listed_and_shown_by_id(admin: Admin) -> None:
    for request_id in ("Root=1-abc/x", "two"):
        admin.submit(request_id)

    listed = admin.request("GET", "/v1/requests").json
    shown = admin.request("GET", "/v1/requests/Root=1-abc/x").json

    assert listed["object"] == "list"
    assert [request["id"] for request in listed["data"]] == ["Root=1-abc/x", "two"]
    assert listed["data"][0] == shown
    assert (shown["api_key"], shown["choices"][0]["state"]) == ("team-a", "queued")
    unknown = admin.request("GET", "/v1/requests/three")
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "not_found")


def test_drain_turns_readiness_red_and_lets_streams_go_on(admin: Admin) -> None:
    admin.submit("one")

    reply = admin.request("POST", "/drain")

    assert (reply.status, reply.json) == (200, {"status": "draining", "live_streams": 1})
    assert not admin.lifecycle.is_ready
    assert admin.client.num_live == 1
    with pytest.raises(EngineUnavailable):
        admin.client.check_room(None)
    assert admin.request("POST", "/drain").status == 200


def test_the_log_level_is_changed_at_run_time(admin: Admin) -> None:
    quire = logging.getLogger("quire")
    before = quire.level
    try:
        reply = admin.request("POST", "/log-level", b'{"level": "debug"}', JSON)
        assert (reply.status, reply.json) == (200, {"status": "debug"})
        assert quire.level == logging.DEBUG
    finally:
        quire.setLevel(before)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"level": "loud"}', "level"),
        (b"{}", "level"),
        (b'{"level": "info", "for": 5}', "for"),
        (b"", None),
    ],
)
def test_a_wrong_log_level_is_a_400(admin: Admin, body: bytes, param: str | None) -> None:
    reply = admin.request("POST", "/log-level", body, JSON)

    assert (reply.status, reply.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/", "/livez", "/metrics", "/v1/models", "/v1/completions"])
def test_nothing_else_is_there(admin: Admin, path: str) -> None:
    reply = admin.request("GET", path)

    assert (reply.status, reply.json["error"]["code"]) == (404, "not_found")
    assert len(reply.headers["x-request-id"]) == 32


def test_the_document_describes_the_routes(admin: Admin) -> None:
    paths = admin.request("GET", "/openapi.json").json["paths"]

    assert set(paths) == {path.replace("some-id", "{request_id}") for _, path in ROUTES}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Host", "evil.example"),
        ("Host", "127.0.0.1.evil.example"),
        ("Host", "10.0.0.1:80"),
    ],
)
def test_what_a_browser_was_made_to_send_is_refused(admin: Admin, name: str, value: str) -> None:
    for method, path in ROUTES:
        reply = admin.request(method, path, headers=[(name, value)])
        assert (reply.status, reply.json["error"]["code"]) == (403, "forbidden")
    assert admin.sent == [] and admin.lifecycle.is_ready


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8001", "[::1]:8001"])
def test_this_machine_s_names_are_accepted(admin: Admin, host: str) -> None:
    assert admin.request("GET", "/v1/requests", headers=[("Host", host)]).status == 200


def test_without_keys_of_its_own_those_of_the_api_are_asked_for(
    serve: Callable[..., Any], tmp_path: Any
) -> None:
    path = tmp_path / "keys"
    path.write_text("api-key\n")
    admin = Admin(serve, api_key_file=path)

    for method, route in (*ROUTES, ("GET", "/livez"), ("GET", "/nothing")):
        assert admin.request(method, route).status == 401
    assert admin.request("GET", "/v1/requests", headers=[("x-api-key", "api-key")]).status == 200


def test_its_own_keys_are_the_only_ones(serve: Callable[..., Any], tmp_path: Any) -> None:
    for name in ("api", "admin"):
        (tmp_path / name).write_text(f"{name}-key\n")
    admin = Admin(serve, api_key_file=tmp_path / "api", admin_key_file=tmp_path / "admin")

    def status(key: str) -> int:
        code: int = admin.request("GET", "/v1/requests", headers=[("x-api-key", key)]).status
        return code

    assert (status("api-key"), status("admin-key")) == (401, 200)


def test_the_public_port_has_none_of_them(
    make_daemon: Callable[..., Any], serve: Callable[..., Any]
) -> None:
    server = serve(make_daemon().app)

    for method, path in ROUTES:
        assert server.request(method, path).status == 404, path
