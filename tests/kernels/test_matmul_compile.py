"""All tiles of a matmul kernel compile to one family of instructions, which differ in width only.

This is what makes a row's bits equal in a decode step and in a prefill: see the kernels.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

MMA = re.compile(r"versionMajor = (\d+), .*instrShape = \[(\d+), (\d+)(?:, (\d+))?\]")


@pytest.fixture(scope="module")
def kernels(compile_ops: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return compile_ops("linear", "dynamic_scaled_matmul", "matmul_gguf")


def test_tiles_share_one_family_of_instructions(kernels: list[dict[str, Any]]) -> None:
    families = defaultdict(set)
    widths = defaultdict(set)
    for kernel in kernels:
        if kernel["dtype"] == "torch.float32" or kernel["kernel"] == "sum_of_spans_kernel":
            assert not kernel["layouts"]
            continue
        (layout,) = kernel["layouts"]
        found = MMA.search(layout)
        assert found, layout
        version, rows, width, depth = found.groups()
        key = kernel["op"], kernel["capability"]
        families[key].add((version, rows, depth))
        widths[key].add(int(width))
        expected = {80: {"mma.sync", "cp.async"}, 90: {"wgmma", "cp.async"}}
        assert set(kernel["instructions"]) >= expected[kernel["capability"]], kernel

    assert families == {
        ("linear", 80): {("2", "16", None)},
        ("linear", 90): {("3", "16", "16")},
        ("dynamic_scaled_matmul", 90): {("3", "16", "32")},
        ("matmul_gguf", 80): {("2", "16", None)},
        ("matmul_gguf", 90): {("3", "16", "16")},
    }
    assert widths["linear", 90] == {16, 32, 64, 128, 256}
    assert widths["dynamic_scaled_matmul", 90] == {16, 32, 64, 128}


def test_only_block_scales_are_fused_into_the_sum(kernels: list[dict[str, Any]]) -> None:
    """Where the compiler may contract, it may do so in one tile and not in another.

    In packed matmuls nothing is fused, so that their weights are those of the dequantization.
    """
    scaled = [kernel for kernel in kernels if kernel["op"] == "dynamic_scaled_matmul"]
    assert len(scaled) == 10
    for kernel in scaled:
        assert ("fma.rn.f32" in kernel["instructions"]) == ("-block-" in kernel["case"])
    for kernel in kernels:
        if kernel["op"] != "dynamic_scaled_matmul" and kernel["dtype"] != "torch.float32":
            assert "fma.rn.f32" not in kernel["instructions"], kernel
