"""Every kernel compiles for GPUs that are not here, within their limits."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
STACK_LIMIT = {"torch.bfloat16": 16, "torch.float32": 512}
"""Bytes a thread may spill: a float32 dot is three products, each with operands of its own."""


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    """What tests/kernels/aot.py reports, from a process of its own without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("aot.py")
    run = subprocess.run(
        [sys.executable, script, *map(str, SHARED_LIMIT)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_op_compiles_for_every_target(kernels: list[dict[str, Any]]) -> None:
    folder = Path(__file__).parents[2] / "kernels"
    ops = {path.parent.name for path in folder.glob("*/kernel.py")}
    compiled = {(kernel["op"], kernel["capability"]) for kernel in kernels}
    assert compiled == {(op, capability) for op in ops for capability in SHARED_LIMIT}


def test_shared_memory_is_within_the_chip(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMIT[kernel["capability"]], kernel


def test_registers_suffice(kernels: list[dict[str, Any]]) -> None:
    if not all(kernel["usage"] for kernel in kernels):
        pytest.skip("this triton wheel has no cuobjdump")
    for kernel in kernels:
        stack, local = re.findall(r"STACK:(\d+) .*LOCAL:(\d+)", kernel["usage"])[0]
        assert int(local) == 0, kernel
        assert int(stack) <= STACK_LIMIT[kernel["dtype"]], kernel


def test_tensor_cores_are_used(kernels: list[dict[str, Any]]) -> None:
    expected = {80: {"mma.sync", "cp.async"}, 90: {"wgmma", "cp.async"}}
    attention = [kernel for kernel in kernels if kernel["kernel"] == "attention_kernel"]
    assert attention
    for kernel in attention:
        assert set(kernel["instructions"]) >= expected[kernel["capability"]], kernel


def test_prefill_and_decode_compile_to_the_same_arithmetic(kernels: list[dict[str, Any]]) -> None:
    """Same tensor-core layouts for both launches, and no contraction that only one may get."""
    launches = defaultdict(list)
    for kernel in kernels:
        if kernel["op"] == "flash_attention_ragged":
            assert "fma.rn.f32" not in kernel["instructions"], kernel
        if kernel["kernel"] == "attention_kernel":
            launches[kernel["case"], kernel["capability"]].append(kernel["layouts"])
    assert launches
    for decode, prefill in launches.values():
        assert decode == prefill
        assert decode
