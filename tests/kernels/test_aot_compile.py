"""The attention and matmul kernels compile for GPUs that are not here, into what they must be.

`make kernels-compile` compiles every kernel of every op; these are the ones whose instructions
and layouts carry a promise.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ATTENDING = ("prefill_kernel", "decode_kernel")
WARPS = re.compile(r"warpsPerCTA = \[(\d+), (\d+)\]")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the compile tool reports, from a process of its own without the interpreter."""
    report = tmp_path_factory.mktemp("compile") / "kernels.jsonl"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "tools" / "compile_kernels.py", "--json", report]
    run = subprocess.run(
        [*command, "--capability", "80", "90", "--op", "flash_attention_ragged", "linear"],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith(" 0 unfit\n")
    return [json.loads(line) for line in report.read_text().splitlines()]


def test_tensor_cores_are_used(kernels: list[dict[str, Any]]) -> None:
    expected = {80: {"mma.sync", "cp.async"}, 90: {"wgmma", "cp.async"}}
    attention = [kernel for kernel in kernels if kernel["kernel"] in ATTENDING]
    assert attention
    for kernel in attention:
        assert set(kernel["instructions"]) >= expected[kernel["capability"]], kernel


def test_prefill_and_decode_compile_to_the_same_arithmetic(kernels: list[dict[str, Any]]) -> None:
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
