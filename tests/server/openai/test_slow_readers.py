"""A client that takes nothing of its stream: what waits for it is bounded, then it is cut off."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest

from quire.config.limits import LIMITS
from quire.server.http_protocol import BoundedHttpProtocol, Deadlines

READER_SECONDS = 0.6
ONE_WRITE_BYTES = 65536
"""More than the events of one token, which are written whole."""
METRIC = "quire_slow_readers_aborted_total"


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The connections made during a test, which cut their readers off early."""
    made: list[Any] = []
    connect = BoundedHttpProtocol.connection_made

    def record(self: Any, transport: Any) -> None:
        connect(self, transport)
        made.append(self)

    monkeypatch.setattr(BoundedHttpProtocol, "connection_made", record)
    monkeypatch.setattr(BoundedHttpProtocol, "deadlines", Deadlines(reader=READER_SECONDS))
    yield made


def stalled(live: Any) -> socket.socket:
    """A connection whose many megabytes of events nobody reads."""
    body = orjson.dumps({"prompt": "a", "stream": True, "n": 64, "logprobs": 20, "max_tokens": 240})
    url = urlsplit(live.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((url.hostname, url.port))
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    return connection


def test_a_reader_that_stalls_is_bounded_and_cut_and_disturbs_nobody(
    live: Any, http: httpx2.Client, protocols: list[Any], value_of: Callable[..., float]
) -> None:
    live.says("one two " * 200, ends=False)
    metrics = live.app.state.metrics
    before = value_of(metrics, METRIC)
    unsent: list[int] = []

    with stalled(live):
        deadline = time.monotonic() + 60
        while not live.engine.streams or protocols[0].flow.write_paused is False:
            assert time.monotonic() < deadline, "it never stalled"
            time.sleep(0.01)
        # Already now: on a busy machine it may be cut off before the others are served.
        unsent.append(protocols[0].transport.get_write_buffer_size())
        live.engine.script = lambda context: [5, 6, 7, 2]
        began = time.monotonic()
        others = [
            http.post("/v1/completions", json={"prompt": "a", "stream": True}) for _ in range(5)
        ]
        took = time.monotonic() - began
        while value_of(metrics, METRIC) == before:
            assert time.monotonic() < deadline, "it was not cut off"
            unsent.append(protocols[0].transport.get_write_buffer_size())
            time.sleep(0.01)

    assert took < 30
    assert all(reply.text.endswith("data: [DONE]\n\n") for reply in others)
    assert max(unsent) <= LIMITS.unsent_bytes + ONE_WRITE_BYTES
    many = live.engine.streams[:64]
    assert all(stream.is_closed for stream in many)
    assert sum(stream.num_said for stream in many) < 64 * 240
    assert value_of(metrics, METRIC) == before + 1
