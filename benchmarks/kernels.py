"""Time every case of every kernel op on this machine, as a fraction of what the machine can do.

    python benchmarks/kernels.py [--op NAME] [--device cpu|cuda] [--threads N] [--cold] [--json FILE]

Each result is first held against the op's reference; one that differs is not timed and the exit
code is 1. `floor` is the share of the time that the measured copy bandwidth and matmul rate of
this machine would need for the case's bytes and FLOPs, whichever takes longer; `x peer` is how
many times the fastest equivalent of torch takes in the same run. On a CPU the fastest of several
runs counts, caches are warm (--cold: emptied before each run, as between the layers of a model), and
cases of GPU size (--max-floor) are left out; on CUDA it is the median with a flushed L2.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quire.kernels.cases import Case, Operation, every_operation
from quire.kernels.linear import Apply, prepare_linear
from quire.kernels.linear.cpu import prepacked

ROOT = Path(__file__).parents[1]

CPU_MAX_FLOOR = 10.0
COLD_BYTES = 2**28
MOST_SECONDS = 0.3
"""Runs are repeated until then, at most seven times."""

Run = Callable[[], Any]


def ways(operation: Operation, inputs: dict[str, Any]) -> Iterator[tuple[str, Run]]:
    """(label, call) of each way of ours to run an op on the inputs of a case."""
    if operation.name != "linear":
        yield operation.name, partial(operation.function(), **inputs)
        return
    weights = inputs["weight_NK"], inputs["bias_N"]
    yield "linear", partial(prepare_linear(*weights), inputs["x_TK"])
    run: Apply
    if inputs["x_TK"].is_cuda:
        other, run = "linear, not exact", prepare_linear(*weights, exact=False)
    else:
        other, run = "linear by oneDNN, not exact", prepacked(*weights)
    yield other, partial(run, inputs["x_TK"])


def cloned(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def outcome(operation: Operation, run: Run, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What a call returned and wrote."""
    result = run()
    returned = result if isinstance(result, tuple) else () if result is None else (result,)
    return (*returned, *(inputs[name] for name in operation.mutates if inputs[name] is not None))


def differs(actual: torch.Tensor, expected: torch.Tensor, case: Case) -> bool:
    """Whether results are further apart than two that are each within tolerance of the truth."""
    wide = expected.double().nan_to_num()
    distance = (actual.double().nan_to_num() - wide).abs()
    return not bool((distance <= 2 * (case.tolerance + case.relative * wide.abs())).all())


def cold_seconds(run: Run) -> float:
    """The fastest of several runs, each after a read of more than the caches hold."""
    other = torch.ones(COLD_BYTES, dtype=torch.uint8)
    run()
    best = float("inf")
    for _ in range(15):
        other.view(torch.int64).sum()
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def seconds(run: Run, device: torch.device, *, is_cold: bool = False) -> float:
    if is_cold:
        return cold_seconds(run)
    if device.type == "cuda":
        from triton.testing import do_bench

        milliseconds: float = do_bench(run, return_mode="median")
        return milliseconds / 1e3
    run()
    start = time.perf_counter()
    run()
    repeats = max(1, int(0.01 / (time.perf_counter() - start)))
    best = float("inf")
    begin = time.perf_counter()
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        best = min(best, (time.perf_counter() - start) / repeats)
        if time.perf_counter() - begin > MOST_SECONDS:
            break
    return best


def measured_limits(device: torch.device) -> tuple[float, float, dict[torch.dtype, float]]:
    """Read and copy (read plus write) bandwidth in bytes/s, and matmul FLOP/s by dtype."""
    is_cuda = device.type == "cuda"
    source = torch.ones(2**30 if is_cuda else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds(lambda: target.copy_(source), device)
    read = source.nbytes / seconds(lambda: source.view(torch.int64).sum(), device)
    size = 8192 if is_cuda else 2048
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        square = torch.ones(size, size, dtype=dtype, device=device)
        peaks[dtype] = 2 * size**3 / seconds(partial(torch.mm, square, square), device)
    return read, copy, peaks


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{models[0].partition(': ')[2]}, {torch.get_num_threads()} threads"


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def is_wrong(operation: Operation, case: Case, run: Run, inputs: dict[str, Any]) -> bool:
    """Whether `run`, on `inputs` as built, differs from the reference."""
    given = cloned(inputs)
    expected = outcome(operation, partial(operation.reference(), **given), given)
    actual = outcome(operation, run, inputs)
    return any(differs(a, b, case) for a, b in zip(actual, expected, strict=True))


def measure(
    operation: Operation, case: Case, device: torch.device, *, is_cold: bool
) -> Iterator[tuple[str, float | None, float | None]]:
    """(label, seconds, fastest peer's seconds) of each way to run; None: wrong, or no peer."""
    inputs = case.build(device, torch.Generator().manual_seed(0))
    peers = [
        seconds(partial(peer, **inputs), device, is_cold=is_cold)
        for peer in operation.peers.values()
    ]
    for label, run in ways(operation, inputs):
        wrong = is_wrong(operation, case, run, inputs)
        taken = None if wrong else seconds(run, device, is_cold=is_cold)
        yield label, taken, min(peers, default=None)


def main() -> int:
    found = list(every_operation())
    parser = argparse.ArgumentParser(description="Time every case of every kernel op.")
    names = [operation.name for operation in found]
    parser.add_argument("--op", action="append", choices=names, metavar="OP")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--max-floor",
        type=float,
        help="leave out cases whose floor is above so many milliseconds (10 on a CPU, else none)",
    )
    parser.add_argument(
        "--cold", action="store_true", help="empty the CPU's caches before each run"
    )
    parser.add_argument("--json", type=Path, help="append one JSON line per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    most = options.max_floor or (CPU_MAX_FLOOR if device.type == "cpu" else math.inf)
    read, bandwidth, peaks = measured_limits(device)
    about = {"device": device_name(device), "commit": commit(), "torch": torch.__version__}
    rates = ", ".join(f"{str(dtype)[6:]} {peak / 1e12:.2f}" for dtype, peak in peaks.items())
    memory = f"read {read / 1e9:.1f}, copy {bandwidth / 1e9:.1f} GB/s"
    print(f"{about}\n{memory}; matmul TFLOP/s: {rates}\n")
    header = ("op", "case", "us", "GB/s", "TFLOP/s", "floor", "x peer")
    print("{:32} {:38} {:>10} {:>8} {:>8} {:>6} {:>7}".format(*header), flush=True)
    wrong = left_out = 0
    for operation in found:
        if options.op and operation.name not in options.op:
            continue
        for case in operation.served:
            peak = peaks.get(case.dtype, max(peaks.values()))
            least = max(case.bytes_moved / bandwidth, case.flops / peak)
            if least * 1e3 > most:
                left_out += 1
                continue
            for label, taken, peer in measure(operation, case, device, is_cold=options.cold):
                if taken is None:
                    wrong += 1
                    print(f"{label:32} {case.name:38} differs from the reference: not timed")
                    continue
                floor = least / taken
                ratio = None if peer is None else peer / taken
                print(
                    f"{label:32} {case.name:38} {taken * 1e6:10.1f} "
                    f"{case.bytes_moved / taken / 1e9:8.1f} {case.flops / taken / 1e12:8.3f} "
                    f"{floor:6.2f} {'' if ratio is None else format(ratio, '.2f'):>7}",
                    flush=True,
                )
                row = about | {"op": label, "case": case.name, "seconds": taken}
                row |= {"bytes": case.bytes_moved, "flops": case.flops}
                row |= {"floor": floor, "ratio_to_peer": ratio}
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    print(f"\n{left_out} cases left out with a floor above {most:g} ms; {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
