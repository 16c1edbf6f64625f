"""The folder of `--state-dir`: whose it is, what is in it, how much of it is taken."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from quire.config.errors import ConfigError
from quire.server.errors import StateUnavailable, StorageFull

_OURS = re.compile(r"file-[0-9a-f]{24}|[0-9a-f]{32}\.part")
FULL = (errno.ENOSPC, errno.EDQUOT)


class Quota:
    """The bytes that are taken of a limit. Uploads and the store's thread share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, count: int) -> None:
        """Raises StorageFull, and takes nothing, unless `count` more bytes are free."""
        with self._lock:
            if self._taken + count > self.limit:
                raise StorageFull(
                    f"Files and batches take {self._taken} bytes, {count} more are needed, and "
                    f"the limit is {self.limit} (state_dir_size); delete files"
                )
            self._taken += count

    @contextlib.contextmanager
    def taking(self, count: int) -> Iterator[None]:
        """`take` for a block, given back when it fails."""
        self.take(count)
        try:
            yield
        except BaseException:
            self.add(-count)
            raise

    def add(self, count: int) -> None:
        """Take what is there already, or give back if it is negative."""
        with self._lock:
            self._taken += count


class StateFolder:
    """`path`, which no other daemon may use at the same time; readable by its owner alone.

    Raises:
        ConfigError: it cannot be made or written, or another daemon has it.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.database = path / "quire.sqlite"
        self.quota = Quota(limit)
        self._files = path / "files"
        self._lock: IO[bytes] | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.mkdir(mode=0o700, exist_ok=True)
            lock = open(path / "lock", "wb", opener=_private)  # noqa: SIM115 - held until close
        except OSError as error:
            raise ConfigError(f"state_dir: {path}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            if error.errno != errno.EWOULDBLOCK:
                raise ConfigError(f"state_dir: {path} cannot be locked: {error.strerror}") from None
            raise ConfigError(f"state_dir: {path} is in use by another daemon") from None
        self._lock = lock

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def blob(self, file_id: str) -> Path:
        """Where a file's bytes are."""
        return self._files / file_id

    def new_part(self) -> Path:
        """A name for bytes on their way to a blob; what a crash leaves there is swept."""
        return self._files / f"{secrets.token_hex(16)}.part"

    def sweep(self, known: set[str]) -> int:
        """Remove the blobs that are not `known`; how many they were. What a person has put there
        is left alone."""
        unknown = [
            path
            for path in self._files.iterdir()
            if path.name not in known and _OURS.fullmatch(path.name)
        ]
        for path in unknown:
            path.unlink(missing_ok=True)
        return len(unknown)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns what the disk refuses into StorageFull or StateUnavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("The disk of the state folder is full") from error
        raise StateUnavailable("The state folder cannot be read or written") from error


def open_part(part: Path) -> IO[bytes]:
    return open(part, "wb", opener=_private)


@contextlib.contextmanager
def new_blob(folder: StateFolder, file_id: str) -> Iterator[IO[bytes]]:
    """A blob to write: under its name, and on the disk, when the block ends well; else nowhere."""
    part = folder.new_part()
    try:
        with open_part(part) as sink:
            yield sink
            sync(sink)
        publish(folder, part, file_id)
    finally:
        part.unlink(missing_ok=True)


def sync(sink: IO[bytes]) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def publish(folder: StateFolder, part: Path, file_id: str) -> None:
    """Give a part that is on the disk its blob's name."""
    part.rename(folder.blob(file_id))
    directory = os.open(part.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)
