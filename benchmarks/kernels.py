"""Time every case of every kernel op on this machine, as a fraction of what the machine can do.

    python benchmarks/kernels.py [--op NAME] [--device cpu|cuda] [--threads N] [--json FILE]

Each result is first held against the op's reference; one that differs is not timed and the exit
code is 1. `floor` is the share of the time that the measured copy bandwidth and matmul rate of
this machine would need for the case's bytes and FLOPs, whichever takes longer. On a CPU the
fastest of several runs counts and caches are warm; on CUDA the median with a flushed L2.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quire.kernels.cases import Case

KERNELS = Path(__file__).parents[1] / "kernels"
ENTRY_POINTS = {"sampling": "sample_tokens"}
"""Public functions that are not named as their op."""

Run = Callable[[], Any]


def operations(op: str, inputs: dict[str, Any]) -> Iterator[tuple[str, Run]]:
    """(label, call) of each way to run an op on the inputs of a case."""
    module = importlib.import_module(f"quire.kernels.{op}")
    if op != "linear":
        run = getattr(module, ENTRY_POINTS.get(op, op))
        yield op, partial(run, **inputs)
        return
    for label, exact in (("linear", True), ("linear, not exact", False)):
        prepared = module.prepare_linear(inputs["weight_NK"], inputs["bias_N"], exact=exact)
        yield label, partial(prepared, inputs["x_TK"])


def differs(actual: Any, expected: Any, tolerance: float) -> bool:
    """Whether results are further apart than two that are each within `tolerance` of the truth."""
    if isinstance(expected, tuple):
        return any(map(differs, actual, expected, [tolerance] * len(expected)))
    distance = (actual.double() - expected.double()).abs()
    return not bool((distance <= 2 * tolerance).all())


def seconds(run: Run, device: torch.device) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench

        milliseconds: float = do_bench(run, return_mode="median")
        return milliseconds / 1e3
    run()
    start = time.perf_counter()
    run()
    repeats = max(1, int(0.01 / (time.perf_counter() - start)))
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def measured_limits(device: torch.device) -> tuple[float, dict[torch.dtype, float]]:
    """Copy bandwidth in bytes/s (read plus write), and matmul FLOP/s by dtype."""
    is_cuda = device.type == "cuda"
    source = torch.ones(2**30 if is_cuda else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds(lambda: target.copy_(source), device)
    size = 8192 if is_cuda else 2048
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        square = torch.ones(size, size, dtype=dtype, device=device)
        peaks[dtype] = 2 * size**3 / seconds(partial(torch.mm, square, square), device)
    return bandwidth, peaks


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{models[0].partition(': ')[2]}, {torch.get_num_threads()} threads"


def commit() -> str:
    command = ["git", "-C", str(KERNELS), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def measure(op: str, case: Case, device: torch.device) -> Iterator[tuple[str, float | None]]:
    """(label, seconds) of each way to run the case; None where the result is wrong."""
    inputs = case.build(device, torch.Generator().manual_seed(0))
    name = ENTRY_POINTS.get(op, op)
    reference = importlib.import_module(f"quire.kernels.{op}.reference")
    expected = getattr(reference, f"{name}_reference")(**inputs)
    for label, run in operations(op, inputs):
        yield label, None if differs(run(), expected, case.tolerance) else seconds(run, device)


def main() -> int:
    found = sorted(path.parent.name for path in KERNELS.glob("*/cases.py"))
    parser = argparse.ArgumentParser(description="Time every case of every kernel op.")
    parser.add_argument("--op", action="append", choices=found)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="append one JSON line per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    bandwidth, peaks = measured_limits(device)
    about = {"device": device_name(device), "commit": commit(), "torch": torch.__version__}
    rates = ", ".join(f"{str(dtype)[6:]} {peak / 1e12:.2f}" for dtype, peak in peaks.items())
    print(f"{about}\ncopy {bandwidth / 1e9:.1f} GB/s; matmul TFLOP/s: {rates}\n")
    print(f"{'op':18} {'case':34} {'us':>10} {'GB/s':>8} {'TFLOP/s':>8} {'floor':>6}")
    wrong = 0
    for op in options.op or found:
        for case in importlib.import_module(f"quire.kernels.{op}.cases").SERVED_CASES:
            for label, taken in measure(op, case, device):
                if taken is None:
                    wrong += 1
                    print(f"{label:18} {case.name:34} differs from the reference: not timed")
                    continue
                floor = max(case.bytes_moved / bandwidth, case.flops / peaks[case.dtype])
                rate, work = case.bytes_moved / taken, case.flops / taken
                print(
                    f"{label:18} {case.name:34} {taken * 1e6:10.1f} {rate / 1e9:8.1f} "
                    f"{work / 1e12:8.3f} {floor / taken:6.2f}",
                    flush=True,
                )
                row = about | {"op": label, "case": case.name, "seconds": taken}
                row |= {"bytes": case.bytes_moved, "flops": case.flops, "floor": floor / taken}
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
