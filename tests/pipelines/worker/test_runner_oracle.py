"""Greedy tokens of our models equal those of transformers' own `generate`."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

MODELS = [
    ("Llama", {"tie_word_embeddings": True}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 32}),
    ("Mistral", {"sliding_window": 20}),
]


@pytest.mark.parametrize(("family", "fields"), MODELS)
def test_greedy_tokens_equal_transformers(
    family: str,
    fields: dict[str, Any],
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
    context_of: Callable[..., Any],
) -> None:
    model = random_model(family, **fields)
    prompt = random.Random(family).choices(range(3, 211), k=24)
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=30, min_new_tokens=30, do_sample=False
        )
    context = context_of(prompt, ignore_eos=False, eos_token_ids=(2,), min_new_tokens=30)

    drive(load(model)).run([context], [[(0, 24)], *([(0, 1)] for _ in range(29))])

    assert context.tokens.all.tolist() == output[0].tolist()
