"""The process that turns pickled weights into safetensors: one job, then it ends.

The job comes as one JSON line on standard input; lines of JSON leave on standard output. A pickle
is a program, so it is run by torch's restricted unpickler (`weights_only`), which knows tensors
and containers only, in a process that holds no secret and has given up what an attack would need.
"""

import json
import os
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from quire.pipelines.core.child_process import die_with_parent, prefer_as_oom_victim
from quire.pipelines.weights.confinement import confine, leave_network, limit_resources

MIN_TORCH = (2, 10)
"""Before 2.10 a crafted file corrupts memory in spite of `weights_only` (CVE-2026-24747)."""
_SPARE_MEMORY = 2 * 1024**3
_SPARE_FILE_BYTES = 100 * 1024**2
"""For the header."""
_CPU_SECONDS = 120
_CPU_BYTES_PER_SECOND = 20 * 1024**2


class Conversion(msgspec.Struct, frozen=True):
    """Write the tensors of `sources[i]` to `targets[i]`, files in `folder`, which exists."""

    sources: tuple[str, ...]
    folder: str
    targets: tuple[str, ...]
    num_bytes: int
    """Of the sources together; tensors may take twice as many, since views share memory there."""


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far it is, 0..1, or the `error` that ended it."""

    fraction: float = 0.0
    error: str = ""


class Unfit(Exception):
    """The file holds something else than weights."""


def main() -> None:
    """Convert and end the process: 0, or 1 after an `Outcome` with an error."""
    die_with_parent(os.getppid())
    prefer_as_oom_victim()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Conversion)
    try:
        leave_network()
        _prepare(job)
        _convert(job)
    except Unfit as error:
        _end(str(error))
    except Exception as error:  # noqa: BLE001 - whatever a file provokes is one line
        _end(_reason(error))
    _end("")


def _prepare(job: Conversion) -> None:
    """Load all code that is needed, then give up what is not."""
    import torch

    import quire.pipelines.weights.safetensors_weights  # noqa: F401

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH:
        raise Unfit(f"reading pickles needs torch 2.10 or newer, found {torch.__version__}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _warm_up(os.path.join(job.folder, "warm-up"))
    largest = max(Path(source).stat().st_size for source in job.sources)
    limit_resources(
        # The mapped file, or what it held, and one tensor laid out anew.
        more_memory=2 * largest + _SPARE_MEMORY,
        file_bytes=2 * job.num_bytes + _SPARE_FILE_BYTES,
        cpu_seconds=_CPU_SECONDS + job.num_bytes // _CPU_BYTES_PER_SECOND,
    )
    confine(list(map(Path, job.sources)), Path(job.folder))


def _warm_up(path: str) -> None:
    """Do once what is to be done: torch imports parts of itself late, which will be refused."""
    import torch

    for is_archive in (True, False):
        tensor = torch.zeros(2, dtype=torch.bfloat16)
        torch.save({"a": tensor}, path, _use_new_zipfile_serialization=is_archive)
        with open(path + ".out", "wb") as file:
            list(_write(file, _checked(_load(path))))
        os.unlink(path)
        os.unlink(path + ".out")


def _load(path: str) -> object:
    import torch

    # Files of torch before 1.6 are no archives and cannot be mapped.
    is_archive = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)


def _convert(job: Conversion) -> None:
    room = 2 * job.num_bytes + 1024**2
    done = 0
    for source, target in zip(job.sources, job.targets, strict=True):
        tensors = _checked(_load(source))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        room -= size
        if room < 0:
            raise Unfit("its tensors take more than twice the bytes of the file")
        with open(os.path.join(job.folder, target), "xb") as file:
            for written in _write(file, tensors):
                _say(Outcome(fraction=min((done + written) / max(job.num_bytes, 1), 1.0)))
            file.flush()
            os.fsync(file.fileno())
        done += size


def _checked(loaded: object) -> dict[str, Any]:
    """The tensors by name, if there is nothing but tensors that safetensors can hold."""
    import torch

    from quire.pipelines.weights.safetensors_weights import TORCH_DTYPES

    if not isinstance(loaded, Mapping):
        raise Unfit(f"expected a table of tensors, found {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise Unfit(f"expected names of tensors, found {name!r:.80}")
        if not isinstance(value, torch.Tensor):
            raise Unfit(f"{name!r:.80}: expected a tensor, found {type(value).__name__}")
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.dtype not in TORCH_DTYPES.values():
            kind = f"{value.dtype} {value.layout} on {value.device.type}"
            raise Unfit(f"{name!r:.80}: expected a plain tensor, found {kind}")
    return {str(name): value.detach() for name, value in loaded.items()}


def _write(file: BinaryIO, tensors: Mapping[str, Any]) -> Any:
    """Write the file; yields the bytes written so far after each tensor.

    Tensors that share memory, such as an embedding that is the head too, are written out each.
    """
    import torch

    from quire.pipelines.weights.safetensors_weights import TORCH_DTYPES

    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        offsets = [position, end]
        shape = list(tensor.shape)
        header[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": offsets}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    written = 0
    for tensor in tensors.values():
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        written += file.write(flat.numpy().data)
        yield written


def _reason(error: Exception) -> str:
    """One line of what torch says, most of which is advice to disable the protection."""
    text = str(error)
    for advice in ("from a trusted source.", "WeightsUnpickler error: "):
        text = text.partition(advice)[2] or text
    text = text.strip().partition("\n")[0].partition(". Please")[0]
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return f"{type(error).__name__}: {printable[:200]}"


def _say(outcome: Outcome) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
    sys.stdout.buffer.flush()


def _end(error: str) -> None:
    _say(Outcome(1.0, error))
    # The end of the interpreter would run into the confinement.
    os._exit(1 if error else 0)


if __name__ == "__main__":
    main()
