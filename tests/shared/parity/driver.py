"""Drives a loaded model through steps of one's choice, and gives the logits of every position."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import PlanRow, StepPlan, StepResult
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.worker.batch import build_inputs
from quire.pipelines.worker.load import LoadedModel, load_runner

PAGE_SIZE = 16

Chunk = tuple[int, int]
"""A part of a step: (index of the context, number of tokens)."""


def load_folder(path: Path, **settings: Any) -> LoadedModel:
    """Load a checkpoint as a worker does, small."""
    values = {"page_size": PAGE_SIZE, "device": "cpu", "threads": 1, "kv_cache_pages": 64}
    return load_runner(
        ModelSettings.model_validate({**values, **settings}),
        path,
        load_model_spec(path),
        lambda phase, fraction: None,
    )


def make_context(
    history: Sequence[int], prompt_length: int | None = None, **fields: Any
) -> TextContext:
    """A context over `history`, greedy unless `fields` say otherwise."""
    tokens = np.array(history, dtype=np.int32)
    prompt = tokens if prompt_length is None else tokens[:prompt_length]
    generated = None if prompt_length is None else tokens[prompt_length:]
    own = {name: fields.pop(name) for name in ("choice", "eos_token_ids") if name in fields}
    params = SamplingParams(**{"temperature": 0.0, **fields})
    return TextContext(0, prompt, params, max_length=4096, generated=generated, **own)


class PageAllocator:
    """Hands out pages in a random order, each once."""

    def __init__(self, num_pages: int, seed: int) -> None:
        self._free = random.Random(seed).sample(range(num_pages), num_pages)

    def grow(self, table: list[int], num_tokens: int) -> None:
        while len(table) * PAGE_SIZE < num_tokens:
            table.append(self._free.pop())


@dataclass
class Driver:
    """Runs contexts through a model as told, with pages of its own; it keeps them all."""

    loaded: LoadedModel
    seed: int = 0

    def __post_init__(self) -> None:
        self.runner = self.loaded.runner
        self.allocators = [
            PageAllocator(group.num_pages, self.seed + index)
            for index, group in enumerate(self.loaded.plan.groups)
        ]
        self.tables: dict[int, list[list[int]]] = {}

    def clean(self) -> None:
        """Zero every page."""
        self.runner.scrub([range(group.num_pages) for group in self.loaded.plan.groups])

    def plan(self, contexts: Sequence[TextContext], step: Sequence[Chunk]) -> StepPlan:
        rows = []
        for index, count in sorted(step, key=lambda chunk: chunk[1] > 1):
            tokens = contexts[index].tokens
            start = tokens.processed_length
            tables = self.tables.setdefault(index, [[] for _ in self.allocators])
            for allocator, table in zip(self.allocators, tables, strict=True):
                allocator.grow(table, start + count)
            samples = start + count == len(tokens)
            rows.append(PlanRow(contexts[index], start, count, tables, samples))
        return StepPlan(rows)

    def advance(self, plan: StepPlan, result: StepResult) -> None:
        sampled = iter(result.tokens.tolist())
        for row in plan.rows:
            if row.samples:
                row.context.update(next(sampled))
            else:
                row.context.tokens.chunk(row.count)
                row.context.tokens.advance_chunk()

    def run(self, contexts: Sequence[TextContext], steps: Sequence[Sequence[Chunk]]) -> None:
        """Execute the steps; contexts take their sampled tokens."""
        for step in steps:
            plan = self.plan(contexts, step)
            self.advance(plan, self.runner.execute(plan))

    def logits(
        self, histories: Sequence[Sequence[int]], steps: Sequence[Sequence[Chunk]]
    ) -> list[torch.Tensor]:
        """Logits [tokens, V] of every position of `histories`, run as `steps` says."""
        contexts = [make_context(history) for history in histories]
        found: list[list[torch.Tensor]] = [[] for _ in histories]
        for step in steps:
            plan = self.plan(contexts, step)
            inputs = build_inputs(plan, PAGE_SIZE, torch.device("cpu"))
            everything = torch.arange(plan.num_tokens)
            logits = self.runner.logits(replace(inputs, logit_rows=everything))
            for row, part in zip(
                plan.rows, logits.split([row.count for row in plan.rows]), strict=True
            ):
                found[contexts.index(row.context)].append(part)
                if row.start + row.count < len(row.context.tokens):
                    row.context.tokens.chunk(row.count)
                    row.context.tokens.advance_chunk()
        return [torch.cat(parts) for parts in found]
