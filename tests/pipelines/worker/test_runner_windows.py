"""Layers with a window: pages are released behind it, and not a bit of the logits changes."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from parity.families.gpt_oss import YARN
from parity.moe_models import spread_mixture
from parity.random_models import SIZES, make_random_model, randomize

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import EngineStats
from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.kv_cache.manager import HeldPages, PagedKVCacheManager
from quire.pipelines.kv_cache.page_group import PageGroup, most_pages
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.worker.batch import build_inputs
from quire.pipelines.worker.engine import Engine
from quire.pipelines.worker.load import LoadedModel

PAGE_SIZE = 16
CHUNK = 32
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2}
MODELS = [
    # The first layer keeps all tokens, the others a window.
    pytest.param(
        (
            ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
            (PageGroup(16), PageGroup(10, window=20)),
        ),
        id="hybrid",
    ),
    pytest.param(
        (("Mistral", {"sliding_window": 40}), (PageGroup(8, window=40),)),
        id="window",
    ),
    pytest.param(
        (
            ("GptOss", {**MIXTURE, "sliding_window": 20, "rope_parameters": YARN}),
            (PageGroup(16), PageGroup(10, window=20)),
        ),
        id="sinks",
    ),
    pytest.param(
        (
            ("Llama4", {**MIXTURE, "attention_chunk_size": 32, "no_rope_layers": [1, 0]}),
            (PageGroup(16), PageGroup(10, window=32)),
        ),
        id="chunks",
    ),
]


@dataclass
class Windowed:
    """A model with windows, for contexts of up to 400 tokens, and pages for two or three."""

    load: Callable[..., LoadedModel]
    few: tuple[PageGroup, ...]


def make_model(family: str, fields: dict[str, Any]) -> transformers.PreTrainedModel:
    if family == "Llama4":
        config = transformers.Llama4TextConfig(**{**SIZES, **fields})
        return spread_mixture(randomize("Llama4ForCausalLM", config))
    return spread_mixture(make_random_model(family, **fields))


@pytest.fixture(params=MODELS)
def windowed(request: pytest.FixtureRequest, load: Any) -> Windowed:
    (family, fields), few = request.param
    model = make_model(family, {**fields, "max_position_embeddings": 400})
    return Windowed(lambda **settings: load(model, **settings), few)


def poison_free_pages(loaded: LoadedModel, groups: tuple[PageGroup, ...], held: HeldPages) -> None:
    """As if others had written NaN to every page that the context does not hold."""
    params = loaded.runner._storage.params
    for index, group in enumerate(params.groups):
        live = held.tables[index][held.dropped[index] :]
        free = sorted(set(range(groups[index].num_pages)) - set(live))
        for layer in (loaded.runner._storage.layers[number] for number in group.layers):
            layer.k[free] = torch.nan
            layer.v[free] = torch.nan


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_equal_with_and_without_release(
    dtype: str, windowed: Windowed, drive: Callable[..., Any]
) -> None:
    rng = random.Random(3)
    history = rng.choices(range(211), k=330)
    loaded = windowed.load(dtype=dtype)
    (expected,) = drive(loaded).logits([history], [[(0, len(history))]])
    groups = tuple(
        PageGroup(most_pages(group.window, len(history), PAGE_SIZE, CHUNK), group.window)
        for group in windowed.few
    )
    assert groups[-1].num_pages * PAGE_SIZE < len(history) / 2
    manager = PagedKVCacheManager(groups, page_size=PAGE_SIZE, max_chunk=CHUNK)
    tokens = np.array(history, dtype=np.int32)
    context = TextContext(0, tokens, SamplingParams(), max_length=400)
    held = manager.new_context(b"")
    assert manager.start(held, manager.no_match(), len(history), 0)

    found, start = [], 0
    for count in [32] * 5 + [16, 32, 16] + [1] * 75 + [31]:
        assert manager.extend(held, start, len(history))
        poison_free_pages(loaded, groups, held)
        plan = StepPlan([PlanRow(context, start, count, held.tables, False)])
        inputs = build_inputs(plan, PAGE_SIZE, torch.device("cpu"))
        found.append(loaded.runner.logits(replace(inputs, logit_rows=torch.arange(count))))
        start += count
        manager.advance(held, tokens[:start])

    assert start == len(history)
    logits = torch.cat(found)
    assert torch.equal(logits.view(torch.int32), expected.view(torch.int32))


def generate(
    loaded: LoadedModel, groups: tuple[PageGroup, ...], contexts: list[TextContext]
) -> EngineStats:
    """Run the contexts, each three steps after the one before it, to their ends."""
    config = SchedulerConfig(
        page_groups=groups,
        page_size=PAGE_SIZE,
        max_batch_size=8,
        max_batch_input_tokens=CHUNK,
        max_length=loaded.max_length,
    )
    engine = Engine(loaded.runner, config, 0)
    waiting = list(contexts)
    step = 0
    while engine.has_work or waiting:
        if waiting and step % 3 == 0:
            engine.submit([waiting.pop(0)])
        engine.step()
        engine.scheduler.check_integrity()
        step += 1
    stats = engine.stats_frame().stats
    assert stats.used_pages == 0
    return stats


def make_contexts(count: int) -> list[TextContext]:
    """Contexts that share beginnings; every other is sampled."""
    rng = random.Random(5)
    shared = rng.choices(range(211), k=170)
    contexts = []
    for number in range(count):
        prompt = shared[: rng.choice([60, 130, 170])] + rng.choices(range(211), k=5)
        params = SamplingParams(
            temperature=float(number % 2), seed=number, max_new_tokens=rng.randint(20, 60)
        )
        tokens = np.array(prompt, dtype=np.int32)
        contexts.append(TextContext(number, tokens, params, max_length=400))
    return contexts


def test_streams_are_equal_alone_and_preempted_in_a_crowd(windowed: Windowed) -> None:
    loaded = windowed.load()
    alone, crowd = make_contexts(10), make_contexts(10)
    for context in alone:
        generate(loaded, loaded.plan.groups, [context])

    stats = generate(loaded, windowed.few, crowd)

    assert [c.tokens.all.tolist() for c in crowd] == [c.tokens.all.tolist() for c in alone]
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0


def test_a_context_of_many_windows_runs_in_a_pool_of_a_few_pages(
    random_model: Any, load: Callable[..., LoadedModel], drive: Callable[..., Any]
) -> None:
    model = random_model("Mistral", max_position_embeddings=400, sliding_window=40)

    def new_context() -> TextContext:
        prompt = np.arange(20, 120, dtype=np.int32)
        return TextContext(0, prompt, SamplingParams(max_new_tokens=180), max_length=400)

    expected, context = new_context(), new_context()
    drive(load(model)).run([expected], [[(0, 100)], *([[(0, 1)]] * 179)])
    loaded = load(model, max_batch_input_tokens=CHUNK, kv_cache_pages=6)
    assert (loaded.max_length, loaded.num_pages) == (400, 6)

    generate(loaded, loaded.plan.groups, [context])

    assert context.tokens.all.tolist() == expected.tokens.all.tolist()
