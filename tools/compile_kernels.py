"""Compile every kernel that the ops' `compiled` cases launch, for GPUs that are not here.

    python tools/compile_kernels.py [--op NAME ...] [--capability 80 90 ...] [--json FILE]

Run without TRITON_INTERPRET. Prints registers, stack, spills and shared memory per kernel and
target, and exits with 1 if a kernel does not compile, spills, or needs more shared memory than
the chip has. The op's own launcher runs on CPU tensors under a driver that compiles and never
launches, so that types, divisibility and constants are those of a real launch.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

from quire.kernels.cases import Operation, every_operation

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory of a thread block, bytes, by compute capability * 10."""
STACK_LIMIT = {"torch.float32": 512}
"""Bytes a thread may keep on its stack: a float32 dot is three products with operands of its own."""
DEFAULT_STACK_LIMIT = 16
INSTRUCTIONS = ("wgmma", "mma.sync", "cp.async", "fma.rn.f32")

Row = dict[str, Any]


class CompileOnlyDriver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def compiled_kernels(op: Callable[..., Any], inputs: dict[str, Any]) -> list[Any]:
    """The kernels that `op(**inputs)` would launch, in order."""
    kernels: list[Any] = []

    def compile_only(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            kernels.append(kernel.run(*args, grid=grid, warmup=True, **kwargs))

        return launch

    launch = KernelInterface.__getitem__
    KernelInterface.__getitem__ = compile_only
    try:
        op(**inputs)
    finally:
        KernelInterface.__getitem__ = launch
    return kernels


@functools.cache
def resource_usage(cubin: bytes) -> str:
    """What cuobjdump says: `REG:64 STACK:0 ... LOCAL:0`; empty where the wheel lacks the tool."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout


def rows_of(operation: Operation, capability: int) -> Iterator[Row]:
    """One row per kernel that the operation's compiled cases launch."""
    triton.runtime.driver.set_active(CompileOnlyDriver(capability))
    for case in operation.compiled:
        inputs = case.build(torch.device("cpu"), torch.Generator().manual_seed(0))
        for kernel in compiled_kernels(operation.triton(), inputs):
            ttgir = kernel.asm["ttgir"].splitlines()
            ptx = kernel.asm["ptx"]
            usage = resource_usage(kernel.asm["cubin"])
            row = {
                "op": operation.name,
                "case": case.name,
                "dtype": str(case.dtype),
                "kernel": kernel.metadata.name,
                "capability": capability,
                "shared": kernel.metadata.shared,
                "layouts": [line for line in ttgir if "_mma<" in line],
                "instructions": [name for name in INSTRUCTIONS if name in ptx],
            }
            for part, key in (("REG", "registers"), ("STACK", "stack"), ("LOCAL", "spilled")):
                found = re.search(rf"{part}:(\d+)", usage)
                row[key] = int(found[1]) if found else None
            yield row


def faults(row: Row) -> Iterator[str]:
    """What makes a compiled kernel unfit to serve."""
    limit = SHARED_LIMIT[row["capability"]]
    if row["shared"] > limit:
        yield f"needs {row['shared']} bytes of shared memory, the chip has {limit}"
    if row["spilled"]:
        yield f"spills {row['spilled']} bytes"
    if (row["stack"] or 0) > STACK_LIMIT.get(row["dtype"], DEFAULT_STACK_LIMIT):
        yield f"keeps {row['stack']} bytes on its stack"


def compiled_rows(name: str, capability: int) -> list[Row]:
    return [
        row
        for operation in every_operation()
        if operation.name == name and operation.min_capability <= capability
        for row in rows_of(operation, capability)
    ]


def main() -> int:
    names = [operation.name for operation in every_operation()]
    parser = argparse.ArgumentParser(description="Compile every kernel for GPUs that are not here.")
    parser.add_argument("--op", nargs="+", choices=names, default=names, metavar="OP")
    parser.add_argument("--capability", nargs="+", type=int, default=list(SHARED_LIMIT))
    parser.add_argument("--json", type=Path, help="write one JSON line per kernel and target")
    options = parser.parse_args()
    jobs = [(name, capability) for name in options.op for capability in options.capability]
    bad = count = 0
    lines = []
    header = ("op", "case", "kernel", "sm", "registers", "stack", "spilled", "shared")
    print("{:32} {:32} {:32} {:>4} {:>9} {:>6} {:>8} {:>8}".format(*header))
    with ProcessPoolExecutor() as pool:
        for rows in pool.map(compiled_rows, *zip(*jobs, strict=True)):
            for row in rows:
                print(
                    f"{row['op']:32} {row['case'][:32]:32} {row['kernel']:32} "
                    f"{row['capability']:4} {row['registers']!s:>9} {row['stack']!s:>6} "
                    f"{row['spilled']!s:>8} {row['shared']:8}",
                    flush=True,
                )
                for fault in faults(row):
                    bad += 1
                    print(f"  BAD: {row['kernel']} {fault}")
                count += 1
                lines.append(json.dumps(row))
    if options.json:
        options.json.write_text("".join(f"{line}\n" for line in lines))
    print(f"{count} kernels compiled, {bad} unfit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
