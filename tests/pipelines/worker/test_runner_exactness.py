"""The bits of a position's logits depend on its history alone (design, section 5)."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

Steps = list[list[tuple[int, int]]]

LENGTHS = (67, 130, 9)
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 3,
}
EXPERTS = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_group": 4,
    "topk_group": 2,
}
WIDE_LATENT = {
    "head_dim": 64,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def alone(length: int, sizes: list[int]) -> Steps:
    """One context cut into `sizes`, the rest token by token."""
    rest = length - sum(sizes)
    return [*([(0, size)] for size in sizes), *([(0, 1)] for _ in range(rest))]


def together(lengths: tuple[int, ...], rng: random.Random) -> Steps:
    """All contexts at once: random cuts, some resting in some steps, decodes beside prefills."""
    left = list(lengths)
    steps: Steps = []
    while any(left):
        step = []
        for index, rest in enumerate(left):
            if rest and rng.random() < 0.8:
                count = rng.choice([1, 1, 2, 16, 17, rng.randint(1, rest)])
                step.append((index, min(count, rest)))
                left[index] -= step[-1][1]
        if step:
            steps.append(step)
    return steps


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("Llama", {"tie_word_embeddings": True, "head_dim": 64, "num_hidden_layers": 2}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
        ("Qwen3", {"head_dim": 32}),
        ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
        ("GPTNeoX", {"num_key_value_heads": 4}),
        ("GPT2", {"class_suffix": "LMHeadModel"}),
        ("Gemma2", {"sliding_window": 20, "num_hidden_layers": 2}),
        ("Olmo2", {"pad_token_id": 0, "num_hidden_layers": 2, "head_dim": 24}),
        # Sums so long that a GEMM library cuts them by the number of rows.
        ("Llama", {"hidden_size": 768, "intermediate_size": 1600, "num_hidden_layers": 1}),
        ("Mixtral", {"hidden_size": 768, "intermediate_size": 800, "num_hidden_layers": 1}),
        ("GptOss", {"sliding_window": 20, "num_local_experts": 5}),
        ("DeepseekV3", {**LATENT, **EXPERTS}),
        # Heads whose absorbed products are of the released widths.
        ("DeepseekV2", {**LATENT, **WIDE_LATENT, "num_hidden_layers": 1, "q_lora_rank": None}),
    ],
)
def test_bits_are_equal_for_any_cut_batch_and_page_placement(
    family: str,
    fields: dict[str, Any],
    dtype: str,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    rng = random.Random(family)
    histories = [rng.choices(range(211), k=length) for length in LENGTHS]
    loaded = load(random_model(family, **fields), dtype=dtype)
    whole = [drive(loaded).logits([h], [[(0, len(h))]])[0] for h in histories]

    for seed, sizes in enumerate(([], [1, 65], [16, 16, 16], [33], [60, 2])):
        (logits,) = drive(loaded, seed=seed).logits([histories[0]], alone(LENGTHS[0], sizes))
        assert_same_bits(logits, whole[0])
    for seed in range(4):
        steps = together(LENGTHS, random.Random(seed))
        for logits, expected in zip(
            drive(loaded, seed=seed).logits(histories, steps), whole, strict=True
        ):
            assert_same_bits(logits, expected)


def test_bits_are_equal_beside_a_full_batch(
    dtype: str,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    rng = random.Random(7)
    histories = [rng.choices(range(211), k=24) for _ in range(40)]
    loaded = load(random_model("Llama"), dtype=dtype, kv_cache_pages=128)
    (expected,) = drive(loaded).logits([histories[17]], [[(0, 24)]])
    prefill = [(index, 20) for index in range(40)]
    decode = [(index, 1) for index in range(40)]

    logits = drive(loaded, seed=3).logits(histories, [prefill, decode, decode, decode, decode])

    assert_same_bits(logits[17], expected)


def test_stale_contents_of_pages_do_not_reach_the_logits(
    dtype: str,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    rng = random.Random(8)
    history, other = (rng.choices(range(211), k=80) for _ in range(2))
    loaded = load(random_model("Llama"), dtype=dtype, kv_cache_pages=10)
    (expected,) = drive(loaded).logits([history], [[(0, 80)]])
    driver = drive(loaded, seed=1)
    driver.logits([other, other], [[(0, 80), (1, 80)]])

    # The same pages again, without cleaning them.
    driver.__post_init__()
    (logits,) = driver.logits([history], [[(0, 33)], [(0, 47)]])

    assert_same_bits(logits, expected)


def test_bits_are_equal_for_long_contexts_on_two_threads(
    dtype: str,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    rng = random.Random(11)
    history, other = (rng.choices(range(211), k=560) for _ in range(2))
    model = random_model("Llama", max_position_embeddings=600, num_hidden_layers=2, head_dim=64)
    loaded = load(model, dtype=dtype, threads=2, kv_cache_pages=64)
    (expected,) = drive(loaded).logits([history], [[(0, 560)]])
    chunks = [[(0, 128), (1, 40)], [(1, 1), (0, 300)], [(0, 90), (1, 200)], [(0, 38)]]
    decode = [[(1, 1), (0, 1)]] * 4

    logits = drive(loaded, seed=5).logits([history, other[:245]], [*chunks, *decode])

    assert_same_bits(logits[0], expected)
