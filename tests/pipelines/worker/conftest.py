"""Checkpoints of random tiny models, runners that load them, and a loop that drives a runner."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import PlanRow, StepPlan, StepResult
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.worker.batch import build_inputs
from quire.pipelines.worker.load import LoadedModel, load_runner
from quire.pipelines.worker.runner import TorchModelRunner

VOCAB_SIZE = 211
MAX_POSITIONS = 160
PAGE_SIZE = 16


def make_random_model(family: str, *, seed: int = 0, **fields: Any) -> transformers.PreTrainedModel:
    """A transformers model of `family` (Llama, Qwen2, ...) whose weights are far from zero.

    `initializer_range` is large so that a mistake anywhere shows in the logits; biases and norms,
    which transformers sets to constants, are random too.
    """
    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": 0.15,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **fields,
        }
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


class PageAllocator:
    """Hands out pages in a random order, each once."""

    def __init__(self, num_pages: int, seed: int) -> None:
        self._free = random.Random(seed).sample(range(num_pages), num_pages)

    def grow(self, pages: list[int], num_tokens: int) -> None:
        while len(pages) * PAGE_SIZE < num_tokens:
            pages.append(self._free.pop())


Chunk = tuple[int, int]
"""A part of a step: (index of the context, number of tokens)."""


@dataclass
class Driver:
    """Runs contexts through a runner as told, with pages of its own."""

    runner: TorchModelRunner
    num_pages: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.allocator = PageAllocator(self.num_pages, self.seed)
        self.pages: dict[int, list[int]] = {}

    def plan(self, contexts: Sequence[TextContext], step: Sequence[Chunk]) -> StepPlan:
        rows = []
        for index, count in sorted(step, key=lambda chunk: chunk[1] > 1):
            tokens = contexts[index].tokens
            start = tokens.processed_length
            pages = self.pages.setdefault(index, [])
            self.allocator.grow(pages, start + count)
            samples = start + count == len(tokens)
            rows.append(PlanRow(contexts[index], start, count, pages, samples))
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


@pytest.fixture
def random_model() -> Callable[..., transformers.PreTrainedModel]:
    return make_random_model


@pytest.fixture
def context_of() -> Callable[..., TextContext]:
    return make_context


@pytest.fixture
def drive() -> Callable[..., Driver]:
    """`drive(loaded, seed=...)`: a driver over all pages of a loaded model."""

    def new_driver(loaded: LoadedModel, seed: int = 0) -> Driver:
        loaded.runner.scrub(range(loaded.num_pages))
        return Driver(loaded.runner, loaded.num_pages, seed)

    return new_driver


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedModel]:
    """`load(model, ...)`: save a transformers model, load it as a worker does."""

    def load_model(
        model: transformers.PreTrainedModel, max_shard_size: str = "1GB", **settings: Any
    ) -> LoadedModel:
        model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        values = {"page_size": PAGE_SIZE, "device": "cpu", "threads": 1, "kv_cache_pages": 64}
        return load_runner(
            ModelSettings.model_validate({**values, **settings}),
            tmp_path,
            load_model_spec(tmp_path),
            lambda phase, fraction: None,
        )

    return load_model
