"""Each probe in each phase of a daemon's life."""

from collections.abc import Callable
from typing import Any

import pytest

from quire.server.lifecycle import Lifecycle


@pytest.fixture(scope="module")
def server_and_daemon(make_daemon: Callable[..., Any], serve: Callable[..., Any]) -> Any:
    daemon = make_daemon()
    return serve(daemon.app), daemon


def test_probes_follow_the_daemon_through_its_life(
    server_and_daemon: Any, value_of: Callable[..., float]
) -> None:
    server, daemon = server_and_daemon
    lifecycle: Lifecycle = daemon.lifecycle

    def statuses() -> list[int]:
        return [server.get(f"/{path}").status for path in ("livez", "startupz", "readyz", "health")]

    def ready_gauge() -> float:
        found: float = value_of(daemon.metrics, "quire_ready")
        return found

    assert statuses() == [200, 503, 503, 503]
    lifecycle.on_progress("loading weights", 0.425)
    assert statuses() == [200, 503, 503, 503]
    reply = server.get("/startupz")
    assert reply.headers["retry-after"] == "1"
    body = reply.json
    assert body.pop("seconds") >= 0
    assert body == {
        "status": "not started", "phase": "loading weights", "percent": 42, "reason": None,
    }  # fmt: skip
    assert ready_gauge() == 0
    assert value_of(daemon.metrics, "quire_startup_seconds") == 0

    lifecycle.on_ready()
    assert statuses() == [200, 200, 200, 200]
    assert server.get("/readyz").json == {"status": "ready"}
    assert ready_gauge() == 1
    startup = value_of(daemon.metrics, "quire_startup_seconds")
    assert startup > 0

    lifecycle.on_worker_lost("worker died: SIGKILL")
    assert statuses() == [200, 200, 503, 503]
    assert server.get("/readyz").json["phase"] == "restarting"
    lifecycle.on_progress("loading weights", 0.5)
    assert server.get("/readyz").json["reason"] == "worker died: SIGKILL"
    assert ready_gauge() == 0

    lifecycle.on_ready()
    assert statuses() == [200, 200, 200, 200]
    assert lifecycle.reason is None
    assert value_of(daemon.metrics, "quire_startup_seconds") == startup

    lifecycle.on_draining()
    lifecycle.on_ready()
    lifecycle.on_worker_lost("worker died: SIGTERM")
    assert statuses() == [200, 200, 503, 503]
    assert server.get("/readyz").json["reason"] == "the server is shutting down"


def test_head_answers_as_get_without_a_body(server_and_daemon: Any) -> None:
    server, _ = server_and_daemon
    for path in ("/livez", "/readyz", "/startupz", "/health", "/version", "/metrics"):
        head, get = server.request("HEAD", path), server.get(path)
        assert (head.status, head.body) == (get.status, b"")


def test_version_is_the_distribution_s(server_and_daemon: Any) -> None:
    from importlib.metadata import version

    server, _ = server_and_daemon
    assert server.get("/version").json == {"version": version("quire")}


def test_metrics_is_prometheus_text(server_and_daemon: Any) -> None:
    server, _ = server_and_daemon
    reply = server.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert b"# TYPE vllm:num_requests_running gauge\n" in reply.body


def test_a_fraction_is_clamped() -> None:
    lifecycle = Lifecycle()
    for given, kept in ((-1.0, 0.0), (0.5, 0.5), (2.0, 1.0)):
        lifecycle.on_progress("loading weights", given)
        assert lifecycle.fraction == kept
