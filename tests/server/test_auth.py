"""Nothing but the probes answers a caller without a key, however the request is dressed up."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire.config.errors import ConfigError
from quire.config.settings import ServeSettings
from quire.server.auth import PUBLIC_PATHS, load_api_keys

KEY = "sk-quire-Test_Key.1"
OTHER = "second-key"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
HOST_TRICKS = ("a", "a:80/livez", "livez", "localhost/livez?", "a#", "@/livez", "[::1]")


@pytest.fixture(scope="module")
def daemon(make_daemon: Callable[..., Any]) -> Any:
    return make_daemon(keys=f"# team a\n{KEY}\r\n\n  {OTHER}  \n")


@pytest.fixture(scope="module")
def server(daemon: Any, serve: Callable[..., Any]) -> Any:
    return serve(daemon.app)


def _paths(routes: Any) -> Iterator[str]:
    """Every path of the route table, those of included routers too."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from _paths(route.original_router.routes)
        else:
            yield route.path.replace("{", "").replace("}", "").replace(":path", "")


def test_the_route_walk_finds_what_the_document_lists(daemon: Any) -> None:
    documented = {path.replace("{", "").replace("}", "") for path in daemon.app.openapi()["paths"]}
    found = set(_paths(daemon.app.routes))
    assert documented <= found
    assert found >= PUBLIC_PATHS | {"/metrics", "/version", "/openapi.json"}


def test_every_route_method_and_host_without_a_key_is_401(daemon: Any, server: Any) -> None:
    closed = sorted(set(_paths(daemon.app.routes)) - PUBLIC_PATHS) + ["/", "/nothing"]
    for path, method in itertools.product(closed, METHODS):
        assert server.request(method, path).status == 401, (method, path)
    for path, host in itertools.product(closed, HOST_TRICKS):
        reply = server.request("GET", path, headers=[("Host", host)])
        assert reply.status in (400, 401), (path, host)


@pytest.mark.parametrize(
    "path",
    [
        "/livez/",
        "//livez",
        "/livez/../v1/models",
        "/livez/..%2fv1/models",
        "/livez%2f..%2fv1%2fmodels",
        "/v1/models/../../livez",
        "/LIVEZ",
        "/livez;/v1/models",
        "/livez%00",
        "/livez%20",
        "/v1/models?/livez",
        "/v1/models%3f/livez",
        "/v1//models",
        "/metrics/",
        "http://a/v1/models",
    ],
)
def test_a_path_that_looks_like_a_probe_is_not_one(server: Any, path: str) -> None:
    assert server.request("GET", path).status == 401


def test_probes_need_no_key(server: Any) -> None:
    assert server.get("/livez").status == 200
    assert {server.get(path).status for path in PUBLIC_PATHS - {"/livez"}} == {503}


def test_the_refusal_is_openai_shaped_and_comes_before_the_body(server: Any) -> None:
    with server.connect() as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
            b"Content-Length: 1000000\r\n\r\n"
        )
        received = raw.recv(65536)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer\r\n" in received
    assert b'"type": "authentication_error", "param": null, "code": "invalid_api_key"' in received


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {KEY}")],
        [("authorization", f"bearer {OTHER}")],
        [("Authorization", f"Bearer   {KEY}  ")],
        [("x-api-key", KEY)],
        [("X-API-Key", OTHER)],
        [("Authorization", "Basic dTpw"), ("x-api-key", KEY)],
    ],
)
def test_a_key_opens(server: Any, headers: list[tuple[str, str]]) -> None:
    assert server.request("GET", "/version", headers=headers).status == 200
    assert server.request("GET", "/metrics", headers=headers).status == 200
    assert server.request("GET", "/nothing", headers=headers).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", KEY)],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", f"Bearer {KEY.lower()}")],
        [("Authorization", f"Bearer {KEY[:-1]}")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", f"Bearer {KEY},{OTHER}")],
        [("Authorization", "Bearer # team a")],
        [("x-api-key", "")],
        [("x-api-key", "\u00e9")],
        [("Cookie", f"x-api-key={KEY}")],
    ],
)
def test_what_is_not_a_key_does_not(server: Any, headers: list[tuple[str, str]]) -> None:
    assert server.request("GET", "/version", headers=headers).status == 401


def test_a_key_in_the_query_is_not_read(server: Any) -> None:
    assert server.get(f"/version?api_key={KEY}").status == 401


def test_without_a_key_file_everything_is_open(
    make_daemon: Callable[..., Any], serve: Callable[..., Any]
) -> None:
    assert serve(make_daemon().app).get("/version").status == 200


def test_keys_are_kept_as_digests_only(daemon: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n{OTHER}\n{KEY}\n")
    keys = load_api_keys(ServeSettings(api_key_file=path))
    assert len(keys) == 2
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no key"),
        ("# only\n\n \n", "holds no key"),
        ("good\ntwo words\n", "line 2: a key is printable ASCII without spaces"),
        ("k\u00e9y\n", "line 1: a key is printable ASCII without spaces"),
        ("good\n:secret\n", "line 2: before a colon stands the key's name"),
        ("team a:secret\n", "line 1: a key is printable ASCII without spaces"),
        ("team/a:secret\n", "line 1: before a colon stands the key's name"),
        ("team-a:\n", "line 1: before a colon stands the key's name"),
        (None, "No such file or directory"),
    ],
)
def test_a_key_file_of_no_use_is_a_config_error(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_api_keys(ServeSettings(api_key_file=path))
    assert str(caught.value).startswith("api_key_file: ")
    assert not {"two words", "secret"} & set(str(caught.value).split(":"))


def test_keys_come_from_file_and_environment_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text("team-a:key-1\nkey-2\n")
    monkeypatch.setenv("QUIRE_API_KEY", "key-3")
    monkeypatch.setenv("QUIRE_API_KEYS", "team-b:key-4, key-5,")

    keys = load_api_keys(ServeSettings(api_key_file=path))

    found = {number: keys.find(f"key-{number}") for number in range(1, 7)}
    names = {number: caller and caller.name for number, caller in found.items()}
    assert names == {1: "team-a", 2: None, 3: None, 4: "team-b", 5: None, 6: None}
    assert [number for number, caller in found.items() if caller is None] == [6]
    assert keys.find("team-a:key-1") is None


def test_keys_of_one_name_are_one_caller(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("team:old-key\nteam:new-key\nother\n")
    keys = load_api_keys(ServeSettings(api_key_file=path))

    assert keys.find("old-key") == keys.find("new-key") != keys.find("other")


def test_a_key_with_two_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a:same\nb:same\n")

    with pytest.raises(ConfigError, match="one key has two names, a and b"):
        load_api_keys(ServeSettings(api_key_file=path))


def test_a_wrong_key_of_the_environment_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUIRE_API_KEYS", "good,two words")

    with pytest.raises(ConfigError, match="^QUIRE_API_KEYS: a key is printable") as caught:
        load_api_keys(ServeSettings())
    assert "two words" not in str(caught.value)


def test_reloaded_keys_replace_those_of_before(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("old-key\n")
    keys = load_api_keys(ServeSettings(api_key_file=path))

    path.write_text("new-key\n")
    keys.reload()
    assert keys.find("new-key") is not None and keys.find("old-key") is None

    for broken in ("", "two words\n"):
        path.write_text(broken)
        with pytest.raises(ConfigError):
            keys.reload()
        assert keys.find("new-key") is not None
    path.unlink()
    with pytest.raises(ConfigError):
        keys.reload()
    assert keys.find("new-key") is not None


def test_a_door_is_not_opened_by_taking_the_last_key_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUIRE_API_KEY", "only")
    keys = load_api_keys(ServeSettings())
    monkeypatch.delenv("QUIRE_API_KEY")

    with pytest.raises(ConfigError, match="no API key is left"):
        keys.reload()
    assert len(keys) == 1


def test_the_log_line_has_the_key_s_name_and_never_the_key(
    make_daemon: Callable[..., Any],
    serve: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "quire")
    server = serve(make_daemon(keys="team-a:top-secret\nbare-secret\n").app)

    for key in ("top-secret", "bare-secret"):
        server.request("GET", "/version", headers=[("x-api-key", key)])

    deadline = time.monotonic() + 5
    while len(ends := [r for r in caplog.records if r.message == "request"]) < 2:
        assert time.monotonic() < deadline
    assert [getattr(record, "api_key", None) for record in ends] == ["team-a", None]
    assert not any("secret" in str(vars(record)) for record in caplog.records)
