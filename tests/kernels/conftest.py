"""What kernel tests share: NaN in unwritten outputs, thread counts, bfloat16 dots, compilations."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

COMPILER = Path(__file__).parents[2] / "tools" / "compile_kernels.py"
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@pytest.fixture(autouse=True)
def nan_filled_empty_tensors() -> Iterator[None]:
    """Every torch.empty comes filled with NaN, so that an element never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def same_bits() -> Callable[[torch.Tensor, torch.Tensor], bool]:
    def compare(actual: torch.Tensor, expected: torch.Tensor) -> bool:
        bits = BITS[actual.dtype]
        return torch.equal(actual.contiguous().view(bits), expected.contiguous().view(bits))

    return compare


@pytest.fixture(autouse=True)
def bfloat16_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round bfloat16 to nearest as a GPU does, and let dots multiply it.

    Triton 3.7's interpreter truncates in the cast, and multiplies the bits of bfloat16 as uint16.
    """
    create_dot = InterpreterBuilder.create_dot
    cast_impl = InterpreterBuilder.cast_impl

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def widening_dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *rest)

    def rounding_cast(self: Any, source: TensorHandle, target: tl.dtype) -> TensorHandle:
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast_impl(self, source, target)
        rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.uint16)
        return TensorHandle(rounded.numpy(), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", widening_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", rounding_cast)


@pytest.fixture(scope="session")
def compile_ops(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """What the compile tool reports of some ops, for those whose instructions carry a promise."""

    def compiled(*names: str) -> list[dict[str, Any]]:
        report = tmp_path_factory.mktemp("compile") / "kernels.jsonl"
        command = [sys.executable, COMPILER, "--json", report, "--capability", "80", "90"]
        run = subprocess.run(
            [*command, "--op", *names],
            check=False,
            env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.endswith(" 0 unfit\n")
        return [json.loads(line) for line in report.read_text().splitlines()]

    return compiled
