"""The attention kernels compile for GPUs that are not here, into what they must be."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

ATTENDING = ("prefill_kernel", "decode_kernel")
WARPS = re.compile(r"warpsPerCTA = \[(\d+), (\d+)\]")


@pytest.fixture(scope="module")
def kernels(compile_ops: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return compile_ops("flash_attention_ragged")


def test_tensor_cores_are_used(kernels: list[dict[str, Any]]) -> None:
    expected = {80: {"mma.sync", "cp.async"}, 90: {"wgmma", "cp.async"}}
    attention = [kernel for kernel in kernels if kernel["kernel"] in ATTENDING]
    assert attention
    for kernel in attention:
        assert set(kernel["instructions"]) >= expected[kernel["capability"]], kernel


def test_prefill_and_decode_compile_to_the_same_arithmetic(
    kernels: list[dict[str, Any]],
) -> None:
    """A warp has one shape of each product in both kernels, and no contraction is in only one.

    Prefill tiles may have twice the rows, with twice the warps, all of them along the rows: the
    instruction, and how warps share keys and columns, must be the same.
    """
    launches: dict[tuple[str, int], dict[str, list[str]]] = defaultdict(dict)
    for kernel in kernels:
        if kernel["op"] == "flash_attention_ragged":
            assert "fma.rn.f32" not in kernel["instructions"], kernel
        if kernel["kernel"] in ATTENDING:
            launches[kernel["case"], kernel["capability"]][kernel["kernel"]] = kernel["layouts"]
    assert launches
    for launch in launches.values():
        prefill, decode = (launch[name] for name in ATTENDING)
        assert decode
        along_rows = r"warpsPerCTA = [rows, \2]"
        assert [WARPS.sub(along_rows, line) for line in prefill] == [
            WARPS.sub(along_rows, line) for line in decode
        ]
        for wide, narrow in zip(prefill, decode, strict=True):
            if wide != narrow:
                assert WARPS.findall(wide) == [("8", "1")]
                assert WARPS.findall(narrow) == [("4", "1")]
