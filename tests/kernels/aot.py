"""Compile every kernel that an op's case launches, for GPUs that are not here.

Run as a script, without TRITON_INTERPRET: prints one JSON line per kernel and target. The op's
own launcher runs on CPU tensors under a driver that compiles and never launches, so that types,
divisibility and constants are those of a real launch.
"""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

from quire.kernels.cases import Case
from quire.kernels.flash_attention_ragged.cases import attention_case
from quire.kernels.flash_attention_ragged.kernel import flash_attention_ragged_triton
from quire.kernels.fused_qk_ragged_rope.cases import rope_case
from quire.kernels.fused_qk_ragged_rope.kernel import fused_qk_ragged_rope_triton
from quire.kernels.linear.cases import linear_case
from quire.kernels.linear.kernel import linear_triton
from quire.kernels.rms_norm.cases import norm_case
from quire.kernels.rms_norm.kernel import rms_norm_triton
from quire.kernels.sampling.cases import sampling_case
from quire.kernels.sampling.kernel import sample_tokens_triton
from quire.kernels.swish_glu.cases import glu_case
from quire.kernels.swish_glu.kernel import swish_glu_triton

BF16, FP32 = torch.bfloat16, torch.float32
STEP = ((1, 40), (1, 900), (30, 0))

ATTENTION = (
    attention_case("bf16-d64", BF16, (14, 2, 64), STEP, 32),
    attention_case("bf16-d128", BF16, (32, 8, 128), STEP, 64),
    attention_case("bf16-d256-window", BF16, (8, 1, 256), STEP, 128, 512),
    attention_case("fp32-d64", FP32, (9, 3, 64), STEP, 32),
)
ROPE = (
    rope_case("bf16-d64", BF16, (14, 2, 64), STEP, 32),
    rope_case("bf16-d128-norms", BF16, (32, 8, 128), STEP, 64, (True, True)),
    rope_case("fp32-d80", FP32, (4, 4, 80), STEP),
)
LINEAR = (
    linear_case(32, 1536, 576, BF16, with_bias=True),
    linear_case(32, 8192, 1024, BF16),
    linear_case(32, 1536, 576, FP32),
)
RMS_NORM = (norm_case(8, 576, BF16), norm_case(8, 4096, BF16, with_residual=False))
SAMPLING = (sampling_case("all", 8, 32000, temperature=1.3, top_k=50, top_p=0.9, min_p=0.01),)
SWISH_GLU = (glu_case(8, 1536, BF16), glu_case(8, 1536, FP32))
OPS: dict[str, tuple[Callable[..., Any], tuple[Case, ...]]] = {
    "flash_attention_ragged": (flash_attention_ragged_triton, ATTENTION),
    "fused_qk_ragged_rope": (fused_qk_ragged_rope_triton, ROPE),
    "linear": (linear_triton, LINEAR),
    "rms_norm": (rms_norm_triton, RMS_NORM),
    "sampling": (sample_tokens_triton, SAMPLING),
    "swish_glu": (swish_glu_triton, SWISH_GLU),
}


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


def report(capability: int) -> Iterator[dict[str, Any]]:
    triton.runtime.driver.set_active(CompileOnlyDriver(capability))
    for op_name, (op, cases) in OPS.items():
        for case in cases:
            inputs = case.build(torch.device("cpu"), torch.Generator().manual_seed(0))
            for kernel in compiled_kernels(op, inputs):
                ttgir = kernel.asm["ttgir"].splitlines()
                ptx = kernel.asm["ptx"]
                yield {
                    "op": op_name,
                    "case": case.name,
                    "dtype": str(case.dtype),
                    "kernel": kernel.metadata.name,
                    "capability": capability,
                    "shared": kernel.metadata.shared,
                    "usage": resource_usage(kernel.asm["cubin"]),
                    "layouts": [line for line in ttgir if "_mma<" in line],
                    "instructions": [
                        name
                        for name in ("wgmma", "mma.sync", "cp.async", "fma.rn.f32")
                        if name in ptx
                    ],
                }


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for line in report(capability):
            print(json.dumps(line), flush=True)
