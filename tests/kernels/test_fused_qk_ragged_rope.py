"""Rope: equal to transformers' own, every slot written, and exact per token."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from quire.kernels.cases import Case
from quire.kernels.fused_qk_ragged_rope import fused_qk_ragged_rope
from quire.kernels.fused_qk_ragged_rope.cases import CASES, SMALL_CASES, rope_case
from quire.kernels.fused_qk_ragged_rope.kernel import fused_qk_ragged_rope_triton

CPU = torch.device("cpu")
Rope = Callable[..., torch.Tensor]
PATHS = [
    pytest.param(fused_qk_ragged_rope, id="cpu"),
    pytest.param(fused_qk_ragged_rope_triton, id="triton"),
]


def by_transformers(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v of the tokens, [T, heads, D], as HF computes them in float32."""
    heads, (_, kv_heads, _, head_dim) = inputs["num_heads"], inputs["k_cache"].shape
    qkv = inputs["qkv"].float().view(len(inputs["qkv"]), -1, head_dim)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], 1)

    def normed(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is None:
            return x
        norm = Qwen3RMSNorm(head_dim, inputs["epsilon"])
        norm.weight.data = weight.float()
        with torch.no_grad():
            result: torch.Tensor = norm(x)
        return result

    cos, sin = inputs["cos_sin"][inputs["batch"].positions.long()].chunk(2, -1)
    q, k = apply_rotary_pos_emb(
        normed(q, inputs["q_norm"]).transpose(0, 1)[None],
        normed(k, inputs["k_norm"]).transpose(0, 1)[None],
        torch.cat((cos, cos), -1)[None],
        torch.cat((sin, sin), -1)[None],
    )
    return q[0].transpose(0, 1), k[0].transpose(0, 1), v


def written(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    page_size = cache.shape[2]
    return cache[slots // page_size, :, slots % page_size]


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    bits = torch.int16 if actual.dtype == torch.bfloat16 else torch.int32
    assert torch.equal(actual.contiguous().view(bits), expected.contiguous().view(bits))


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rope", PATHS)
def test_equals_transformers(rope: Rope, case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    q = rope(**inputs)
    slots = inputs["batch"].slots
    k, v = (written(inputs[name], slots) for name in ("k_cache", "v_cache"))
    expected = by_transformers(inputs)
    assert q.dtype == case.dtype
    for actual, oracle in zip((q, k), expected, strict=False):
        torch.testing.assert_close(actual.float(), oracle, atol=case.tolerance, rtol=0)
    assert_same_bits(v, expected[2].to(case.dtype))


@pytest.mark.parametrize("rope", PATHS)
def test_without_norms_equals_transformers_bit_for_bit_in_fp32(rope: Rope) -> None:
    inputs = rope_case("", torch.float32, (4, 2, 32), ((1, 37), (9, 50))).build(
        CPU, torch.Generator().manual_seed(2)
    )
    q = rope(**inputs)
    expected_q, expected_k, _ = by_transformers(inputs)
    assert_same_bits(q, expected_q)
    assert_same_bits(written(inputs["k_cache"], inputs["batch"].slots), expected_k)


@pytest.mark.parametrize("rope", PATHS)
def test_only_the_slots_of_the_batch_are_written(rope: Rope) -> None:
    inputs = SMALL_CASES[0].build(CPU, torch.Generator().manual_seed(3))
    rope(**inputs)
    slots = inputs["batch"].slots
    for name in ("k_cache", "v_cache"):
        is_written = ~inputs[name].isnan()
        assert written(is_written, slots).all()
        assert is_written.sum() == len(slots) * inputs[name][0, :, 0].numel()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bits_of_a_token_do_not_depend_on_its_batch(threads: int, case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(4))
    whole = fused_qk_ragged_rope(**inputs)
    batch, qkv = inputs["batch"], inputs["qkv"]
    k, v = (written(inputs[name], batch.slots) for name in ("k_cache", "v_cache"))
    tokens = len(qkv)
    cuts = [(0, 1), (tokens - 1, tokens), (1, tokens // 2), (tokens // 2, tokens)]
    for start, stop in cuts:
        part = replace(batch, positions=batch.positions[start:stop], slots=batch.slots[start:stop])
        caches = {name: torch.zeros_like(inputs[name]) for name in ("k_cache", "v_cache")}
        alone = {**inputs, **caches, "qkv": qkv[start:stop].clone(), "batch": part}
        assert_same_bits(fused_qk_ragged_rope(**alone), whole[start:stop])
        assert_same_bits(written(caches["k_cache"], part.slots), k[start:stop])
        assert_same_bits(written(caches["v_cache"], part.slots), v[start:stop])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(16, 100)}, r"qkv must have \(4 \+ 2 \* 2\) \* 32 columns, got 100"),
        ({"qkv": torch.zeros(16, 256, dtype=torch.bfloat16)}, "the dtype torch.bfloat16"),
        ({"cos_sin": torch.zeros(99, 16)}, r"cos_sin must be float32 \[positions, 32\]"),
        ({"q_norm": torch.zeros(16)}, r"q_norm must be \[32\] of torch.float32"),
        ({"k_norm": torch.zeros(32).half()}, r"k_norm must be \[32\] of torch.float32"),
        ({"qkv": torch.zeros(256, 16).T}, "must be contiguous"),
        (
            {"k_cache": torch.zeros(1, 2, 16, 3), "v_cache": torch.zeros(1, 2, 16, 3)},
            "head_dim must be even, got 3",
        ),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    inputs = SMALL_CASES[0].build(CPU, torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match=message):
        fused_qk_ragged_rope(**{**inputs, **change})
