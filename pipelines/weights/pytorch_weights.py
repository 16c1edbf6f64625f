"""`PytorchWeights`: pickled weights, which another process converts to safetensors beforehand.

The result is kept in Quire's cache folder under a digest of the files' places, sizes and times.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from quire.config.converter_env import cache_folder, converter_environment
from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.weights.formats import SINGLE_FILES, WeightsFormat, format_of
from quire.pipelines.weights.pytorch_converter import Conversion, Outcome
from quire.pipelines.weights.safetensors_header import read_header
from quire.pipelines.weights.safetensors_weights import INDEX_FILE, SINGLE_FILE, SafetensorWeights

_VERSION = 1
"""Of what the converter writes; part of the digest."""
_SECONDS = 600
_BYTES_PER_SECOND = 5 * 1024**2
"""The converter is ended when it takes longer than `_SECONDS` and this for each byte."""

Progress = Callable[[str, float], None]


class PytorchWeights(SafetensorWeights):
    """The tensors of a folder's pickled files; reading them runs no code in this process.

    `progress` gets ("convert", fraction 0..1) while they are converted.

    Raises:
        ModelError: there are none, several without an index, one that holds anything but tensors,
            or there is no room for what they hold.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        files, listed = _files(folder)
        target = cache_folder() / "converted" / _digest(files)
        _check_owner(target.parent)
        if not SafetensorWeights.is_in(target):
            _convert(files, listed, target, progress)
        super().__init__(target)


def pickled_files(folder: Path) -> list[str]:
    """The names of the pickled files of weights in `folder`."""
    return sorted(
        path.name for path in folder.iterdir() if format_of(path) is WeightsFormat.pytorch
    )


def _files(folder: Path) -> tuple[list[Path], Mapping[str, str]]:
    """The files of the checkpoint, and for shards the file that each tensor is in."""
    single = SINGLE_FILES[WeightsFormat.pytorch]
    index = folder / f"{single}.index.json"
    if (folder / single).is_file():
        return [folder / single], {}
    if index.is_file():
        config = ConfigFile.read(index)
        weight_map = config.section("weight_map")
        listed = {name: weight_map.string(name) for name in weight_map}
        if not listed:
            raise config.wrong("weight_map", "a JSON object with names")
        for name in listed.values():
            is_inside = PurePosixPath(name).name == name
            if not is_inside or format_of(name) is not WeightsFormat.pytorch:
                raise ModelError(f"{index}: weight_map: expected a .bin file name, found {name!r}")
            if not (folder / name).is_file():
                raise ModelError(f"{folder / name}: file not found")
        return [folder / name for name in sorted(set(listed.values()))], listed
    names = pickled_files(folder)
    if len(names) != 1:
        found = ", ".join(names) or "nothing"
        raise ModelError(f"{folder}: expected {single}, {index.name} or one file, found {found}")
    return [folder / names[0]], {}


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for path in files:
        place, status = path.resolve(), path.stat()
        # The time of change too: times of modification are copied and set by archives.
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(f"\n{place} {path.name} {status.st_size} {times}".encode())
    return digest.hexdigest()


def _convert(
    files: list[Path], listed: Mapping[str, str], target: Path, progress: Progress
) -> None:
    """Have the files converted beside `target`, check the result, and give it its name."""
    num_bytes = sum(path.stat().st_size for path in files)
    count = len(files)
    names = [f"model-{index:05}-of-{count:05}.safetensors" for index in range(1, count + 1)]
    names = [SINGLE_FILE] if count == 1 else names
    cache = target.parent
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(cache).free
        if free < num_bytes:
            raise ModelError(f"{cache}: converting needs {num_bytes} bytes, {free} are free")
        with _work_folder(cache) as work:
            result = work.resolve() / "result"
            result.mkdir()
            sources = tuple(str(path.resolve()) for path in files)
            job = Conversion(sources, str(result), tuple(names), num_bytes)
            _run(job, files[0].parent, progress)
            if count > 1:
                _write_index(result, dict(zip(names, files, strict=True)), listed)
            SafetensorWeights(result)
            _rename(result, target)
    except OSError as error:
        raise ModelError(f"{cache}: converting {files[0].name}: {error}") from None


def _run(job: Conversion, folder: Path, progress: Progress) -> None:
    """Run the converter to its end."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "quire.pipelines.weights.pytorch_converter"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=converter_environment(),
    )
    limit = threading.Timer(_SECONDS + job.num_bytes / _BYTES_PER_SECOND, process.kill)
    outcome = Outcome()
    limit.start()
    with process, contextlib.ExitStack() as stack:
        stack.callback(limit.cancel)
        stack.callback(process.kill)
        assert process.stdin is not None and process.stdout is not None
        # A converter that died already says why by its code.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.close()
        for line in process.stdout:
            outcome = _outcome(line)
            progress("convert", outcome.fraction)
        code = process.wait()
    what = ", ".join(Path(source).name for source in job.sources)
    if outcome.error:
        raise ModelError(f"{folder}: {what} cannot be converted: {outcome.error}")
    if code:
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise ModelError(f"{folder}: {what} cannot be converted: the converter ended with {how}")


def _outcome(line: bytes) -> Outcome:
    try:
        return msgspec.json.decode(line, type=Outcome)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Nothing else writes there, but code that a file smuggled in.
        return Outcome(error="the converter said what it never says")


def _write_index(result: Path, source_of: Mapping[str, Path], listed: Mapping[str, str]) -> None:
    """The index of what was converted, which must be what the index of the pickles lists."""
    weight_map: dict[str, str] = {}
    for name, source in source_of.items():
        for tensor in read_header(result / name):
            if listed.get(tensor) != source.name:
                raise ModelError(f"{source}: {tensor}: expected the index to list it here")
            weight_map[tensor] = name
    for tensor, name in listed.items():
        if tensor not in weight_map:
            raise ModelError(f"{name}: {tensor}: expected the tensor that the index lists")
    (result / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _rename(result: Path, target: Path) -> None:
    try:
        result.rename(target)
    except OSError as error:
        # Another process was faster with the same.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _check_owner(cache: Path) -> None:
    """Refuse a folder where another user could put weights of his own."""
    if not cache.exists():
        return
    status = cache.stat()
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise ModelError(
            f"{cache}: expected a folder of this user that no other can write to, found one of "
            f"user {status.st_uid} with mode {status.st_mode & 0o7777:04o}"
        )


@contextlib.contextmanager
def _work_folder(cache: Path) -> Iterator[Path]:
    """A folder in `cache` that is locked as long as this process lives; those of dead ones go.

    A process's number would not do: in another container it is that of another, or of nobody.
    """
    with contextlib.ExitStack() as stack:
        with _locked(cache):
            for left in cache.glob(".*"):
                if left.is_dir() and _is_unlocked(left):
                    shutil.rmtree(left, ignore_errors=True)
            work = tempfile.TemporaryDirectory(prefix=".work-", dir=cache)
            path = Path(stack.enter_context(work))
            stack.enter_context(_locked(path))
        yield path


@contextlib.contextmanager
def _locked(folder: Path, flags: int = fcntl.LOCK_EX) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, flags)
        yield
    finally:
        os.close(handle)


def _is_unlocked(folder: Path) -> bool:
    try:
        with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return True
    except OSError:
        return False
