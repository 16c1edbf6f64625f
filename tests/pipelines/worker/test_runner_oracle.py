"""Logits and greedy tokens of our models equal those of transformers' own implementations."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

LENGTH = 70

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i / 2 for i in range(8)],
}
WINDOW = {"use_sliding_window": True, "sliding_window": 20}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("Llama", {"num_key_value_heads": 1, "num_hidden_layers": 1}),
    "llama all kv heads": ("Llama", {"num_key_value_heads": 4, "head_dim": 24}),
    "llama linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama dynamic rope": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama yarn rope": ("Llama", {"rope_parameters": YARN}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen2 two windows": ("Qwen2", {**WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3 bias": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3 windows": ("Qwen3", {**WINDOW, "max_window_layers": 0}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 20}),
    "mistral longrope": ("Mistral", {"sliding_window": None, "rope_parameters": LONGROPE}),
}


def with_theta(fields: dict[str, Any]) -> dict[str, Any]:
    if "rope_parameters" not in fields:
        return fields
    return {**fields, "rope_parameters": {"rope_theta": 10000.0, **fields["rope_parameters"]}}


def random_cuts(length: int, rng: random.Random) -> list[list[tuple[int, int]]]:
    cuts = sorted(rng.sample(range(1, length), 5))
    return [[(0, end - start)] for start, end in zip([0, *cuts], [*cuts, length], strict=True)]


def oracle_logits(model: Any, history: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([history])).logits[0].float()
    return logits


@pytest.mark.parametrize("name", CASES)
def test_logits_of_every_position_equal_transformers(
    name: str, random_model: Callable[..., Any], load: Callable[..., Any], drive: Callable[..., Any]
) -> None:
    family, fields = CASES[name]
    model = random_model(family, attn_implementation="eager", **with_theta(fields))
    rng = random.Random(name)
    history = [rng.randrange(211) for _ in range(LENGTH)]
    expected = oracle_logits(model, history)
    # Longer than 40, so that longrope takes its long factors as transformers does here.
    loaded = load(model, max_shard_size="100KB", max_length=LENGTH + 10)

    for steps in (
        [[(0, LENGTH)]],
        random_cuts(LENGTH, rng),
        [[(0, 30)], *([(0, 1)] for _ in range(LENGTH - 30))],
    ):
        (logits,) = drive(loaded).logits([history], steps)
        assert (logits - expected).abs().max() <= 1e-4
        assert expected.abs().max() > 1


@pytest.mark.parametrize("name", ["llama tied", "qwen2", "qwen3", "mistral window"])
def test_greedy_tokens_equal_transformers(
    name: str,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
    context_of: Callable[..., Any],
) -> None:
    family, fields = CASES[name]
    model = random_model(family, **fields)
    prompt = random.Random(name).choices(range(3, 211), k=24)
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=30, min_new_tokens=30, do_sample=False
        )
    context = context_of(prompt, ignore_eos=False, eos_token_ids=(2,), min_new_tokens=30)

    drive(load(model)).run([context], [[(0, 24)], *([(0, 1)] for _ in range(29))])

    assert context.tokens.all.tolist() == output[0].tolist()


@pytest.mark.parametrize("name", ["llama", "llama biases", "qwen2 tied", "qwen3", "mistral window"])
def test_bfloat16_logits_are_as_close_to_fp32_as_transformers_are(
    name: str, random_model: Callable[..., Any], load: Callable[..., Any], drive: Callable[..., Any]
) -> None:
    """Bound: 1.5 times the greatest error that transformers makes in bfloat16."""
    family, fields = CASES[name]
    model = random_model(family, **with_theta(fields)).to(torch.bfloat16)
    history = random.Random(name).choices(range(211), k=LENGTH)
    rounded = oracle_logits(model, history)
    loaded = load(model)
    exact = oracle_logits(model.float(), history)

    (logits,) = drive(loaded).logits([history], [[(0, 40)], [(0, 1)], [(0, LENGTH - 41)]])

    assert loaded.dtype == "bfloat16"
    assert (logits - exact).abs().max() <= 1.5 * (rounded - exact).abs().max()
