"""The daemon's first and last moments: the address, and work that outlives its waiter."""

import asyncio
import threading
from pathlib import Path

import pytest

from quire.config.errors import ConfigError, PortInUse
from quire.server import daemon


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

    assert daemon.default_model_name(f"{tmp_path}/tiny/") == "tiny"
    assert daemon.default_model_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert daemon.default_model_name("quire-demo") == "quire-demo"
