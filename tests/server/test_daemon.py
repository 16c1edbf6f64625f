"""The daemon's first and last moments: the address, and work that outlives its waiter."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from quire.config.errors import ConfigError, PortInUse
from quire.config.settings import ServeSettings
from quire.server import daemon
from quire.server.auth import load_admin_keys, load_api_keys
from quire.server.http_protocol import BoundedHttpProtocol, Deadlines


def test_an_address_has_one_owner_from_the_moment_it_is_bound() -> None:
    with daemon._bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            daemon._bind("127.0.0.1", port)


def test_an_address_of_another_machine_is_a_wrong_option() -> None:
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1"):
        daemon._bind("203.0.113.1", 0)


async def test_a_thread_that_nobody_waits_for_any_more_ends_quietly() -> None:
    # pytest turns an exception of a thread into an error of this test.
    release = threading.Event()
    waiting = asyncio.create_task(daemon._in_thread(release.wait))
    await asyncio.sleep(0.01)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "load"]

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await asyncio.to_thread(thread.join)


def test_a_model_without_a_name_is_called_by_its_folder_or_its_hub_id(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "Tiny-Q8_0.gguf").touch()

    assert daemon.default_model_name(f"{tmp_path}/tiny/") == "tiny"
    assert daemon.default_model_name(f"{tmp_path}/Tiny-Q8_0.gguf") == "Tiny-Q8_0"
    assert daemon.default_model_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert daemon.default_model_name("quire-demo") == "quire-demo"


@pytest.mark.parametrize(
    ("options", "has_keys", "message"),
    [
        ({"host": "0.0.0.0"}, False, "host: 0.0.0.0 is reachable"),
        ({"max_concurrency_per_key": 3}, False, "max_concurrency_per_key: needs"),
        ({"admin_key_file": Path("keys")}, True, "admin_key_file: needs an --admin-port"),
    ],
)
def test_a_door_that_makes_no_sense_is_a_wrong_option(
    options: dict[str, Any], has_keys: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        daemon._check_doors(ServeSettings(**options), has_keys)


@pytest.mark.parametrize(
    ("options", "has_keys"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0", "insecure": True}, False),
        ({"host": "0.0.0.0", "max_concurrency_per_key": 3}, True),
        ({"admin_key_file": Path("keys"), "admin_port": 0}, False),
    ],
)
def test_a_door_that_is_meant_so_is_opened(options: dict[str, Any], has_keys: bool) -> None:
    daemon._check_doors(ServeSettings(**options), has_keys)


def test_the_deadlines_of_the_settings_reach_every_connection() -> None:
    settings = ServeSettings(header_timeout=1.0, body_timeout=2.0, reader_timeout=3.0)

    protocol = daemon._uvicorn_config(FastAPI(), settings).http

    assert issubclass(protocol, BoundedHttpProtocol)  # type: ignore[arg-type]
    assert protocol.deadlines == Deadlines(header=1.0, body=2.0, reader=3.0)  # type: ignore[union-attr]


def test_keys_that_cannot_be_reloaded_leave_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / "api", tmp_path / "admin"]
    for path in paths:
        path.write_text("old\n")
    settings = ServeSettings(api_key_file=paths[0], admin_key_file=paths[1])
    api = load_api_keys(settings)
    admin = load_admin_keys(settings, api)
    paths[0].write_text("")
    paths[1].write_text("new\n")

    daemon._reload(api, admin)

    assert api.find("old") is not None and admin.find("new") is not None
    assert "those of before stay" in caplog.text and str(paths[0]) in caplog.text
