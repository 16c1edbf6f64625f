"""What grammars cost a step: `python benchmarks/structured.py [--shape NAME] [--batch N]`.

Decode steps of one batch with a JSON Schema in every context and of one without, in turn, over the
same weights and pages: the medians of both.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from random_checkpoint import SHAPES, write_checkpoint

from quire.config.settings import ModelSettings
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.grammar import Grammar, GrammarSpec
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.structured.compile_process import Compiler, CompilerBoot
from quire.pipelines.structured.json_schema import enforceable
from quire.pipelines.worker.engine import Engine
from quire.pipelines.worker.start import StartedEngine, start_engine

PROMPT_TOKENS = 32
MAX_LENGTH = 1024
ITEMS: Sequence[dict[str, object]] = (
    {"type": "string"},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            "kind": {"enum": ["customer", "supplier", "other"]},
        },
        "required": ["name", "age", "kind"],
    },
    {"type": "array", "items": {"type": "number"}, "minItems": 3},
    {"anyOf": [{"type": "string", "maxLength": 40}, {"type": "boolean"}, {"type": "null"}]},
)
"""Of lists that are longer than the measurement."""


def grammars(compiler: Compiler) -> list[Grammar]:
    found = []
    for number, items in enumerate(ITEMS):
        schema = enforceable({"type": "array", "items": items, "minItems": 500})
        compiled = compiler.compile(GrammarSpec("json_schema", json.dumps(schema)))
        if compiled.error:
            raise SystemExit(f"schema {number}: {compiled.error}")
        found.append(Grammar(str(number), compiled.data))
    return found


def contexts(
    started: StartedEngine,
    batch: int,
    known: Sequence[Grammar],
    ends: tuple[int, ...],
    prompt_tokens: int,
) -> list[TextContext]:
    made = []
    for index in range(batch):
        prompt = np.random.default_rng(index).integers(10, 400, prompt_tokens, dtype=np.int32)
        context = TextContext(
            index,
            prompt,
            SamplingParams(temperature=1.0, seed=index, max_new_tokens=MAX_LENGTH - prompt_tokens),
            max_length=MAX_LENGTH,
            eos_token_ids=ends,
            grammar=known[index % len(known)] if known else None,
        )
        if context.grammar is not None:
            started.matchers.attach(context, started.matchers.load(context.grammar))
        made.append(context)
    return made


def decoding(
    started: StartedEngine,
    batch: int,
    known: Sequence[Grammar],
    ends: tuple[int, ...],
    prompt_tokens: int = PROMPT_TOKENS,
) -> Engine:
    """An engine in which `batch` contexts decode."""
    engine = Engine(started.model.runner, started.config, epoch=1)
    engine.submit(contexts(started, batch, known, ends, prompt_tokens))
    while (output := engine.step()) is not None:
        if output.input_tokens == batch:
            return engine
    raise SystemExit("the contexts ended before all of them decoded")


def step_ms(engine: Engine, batch: int) -> tuple[float, float]:
    """Of the clock, and of all threads' CPU time."""
    start, start_cpu = time.perf_counter(), time.process_time()
    output = engine.step()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    if output is None or output.input_tokens != batch:
        raise SystemExit("a context ended during the measurement")
    return seconds * 1e3, cpu * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what grammars cost a decode step.")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(arguments.shape, folder)
        settings = ModelSettings(
            model=str(folder), load_format="random", max_batch_size=arguments.batch, max_length=1024
        )
        started = start_engine(settings, folder, 1, lambda phase, fraction: None)
        vocab_size, ends = SHAPES[arguments.shape]["vocab_size"], (2,)
        known = grammars(Compiler(CompilerBoot(str(folder), vocab_size, ends)))
        engines = [decoding(started, arguments.batch, used, ends) for used in ((), known)]
        times: list[list[tuple[float, float]]] = [[], []]
        for turn in range(arguments.steps):
            for index in (0, 1) if turn % 2 else (1, 0):
                times[index].append(step_ms(engines[index], arguments.batch))
    print(f"{arguments.shape}, {arguments.batch} contexts, {arguments.steps} steps each")
    for number, name in enumerate(("ms a step", "ms of CPU time a step")):
        plain, masked = (statistics.median(time[number] for time in kind) for kind in times)
        share = 100 * (masked / plain - 1)
        print(f"{name}: {plain:.2f} without grammars, {masked:.2f} with, {share:+.1f} %")


if __name__ == "__main__":
    main()
