"""What a decode step on a CPU is made of: `python benchmarks/decode_step.py [--shape NAME]`.

Steps of an engine in this process, without HTTP: their median, then the same steps with the ops of
the model's blocks called one by one, so that each has a time of its own.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from random_checkpoint import SHAPES, write_checkpoint
from structured import decoding, step_ms

from quire.config.settings import ModelSettings
from quire.kernels.native import Library, library
from quire.kernels.native.program import OP
from quire.pipelines.worker.engine import Engine
from quire.pipelines.worker.start import StartedEngine, start_engine

KINDS = ("norms", "linear layers", "rope and cache", "activations", "attention", "choice of rows")
"""By OpKind of kernels/native/program.h."""
BLOCKS, HEAD, LOGITS = "blocks, as one call", "last linear layer", "logits and sampling"
PROMPT_TOKENS = 128


class Watch:
    """Takes the place of the library's functions and adds up the milliseconds of each kind; while
    it is on, programs run op by op."""

    def __init__(self, native: Library) -> None:
        self.is_on = False
        self.spent: dict[str, float] = defaultdict(float)
        self._program = native.program
        native.program = self.program
        kinds = {"norm": KINDS[0], "linear": HEAD}
        for name in ("norm", "linear", "sampling", "widen", "invalid_rows"):
            setattr(native, name, self.timed(kinds.get(name, LOGITS), getattr(native, name)))

    def timed(self, kind: str, function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            self.spent[kind] += (time.perf_counter() - start) * 1e3
            return result

        return run

    def program(self, ops: bytes, count: int, *run: bytes) -> int:
        if not self.is_on:
            return int(self.timed(BLOCKS, self._program)(ops, count, *run))
        for index in range(count):
            op = ops[index * OP.size : (index + 1) * OP.size]
            status: int = self.timed(KINDS[OP.unpack(op)[0]], self._program)(op, 1, *run)
            if status:
                return status
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the parts of a decode step.")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--folder", type=Path, help="a checkpoint instead of random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    native = library()
    if native is None:
        raise SystemExit("the compiled library is not built")
    watch = Watch(native)  # before layers take functions of the library
    batch_size = max(arguments.batch)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        if not arguments.folder:
            write_checkpoint(arguments.shape, folder)
        settings = ModelSettings(
            model=str(folder),
            load_format="auto" if arguments.folder else "random",
            max_batch_size=batch_size,
            max_length=1024,
        )
        started = start_engine(settings, folder, 1, lambda phase, fraction: None)
    for batch in arguments.batch:
        report(started, batch, arguments.steps, watch)


def report(started: StartedEngine, batch: int, steps: int, watch: Watch) -> None:
    engine = decoding(started, batch, (), (), PROMPT_TOKENS)
    # Without the steps that still make up for the prompts.
    for _ in range(5):
        step_ms(engine, batch)
    whole = [measured(engine, batch, watch) for _ in range(steps)]
    watch.is_on = True
    parts = [measured(engine, batch, watch) for _ in range(steps)]
    watch.is_on = False
    for rows in (whole, parts):
        print(f"{batch} contexts" + ", blocks op by op" * (rows is parts))
        for kind in rows[0]:
            print(f"  {kind}: {statistics.median(row[kind] for row in rows):.2f}")


def measured(engine: Engine, batch: int, watch: Watch) -> dict[str, float]:
    """Milliseconds of a step, and of its parts."""
    watch.spent.clear()
    clock, cpu = step_ms(engine, batch)
    outside = clock - sum(watch.spent.values())
    return {"step": clock, "CPU time": cpu, **watch.spent, "outside of kernels": outside}


if __name__ == "__main__":
    main()
