"""Rope: equal to transformers' own, every slot written, and exact per token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as rotate_cohere
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as rotate_gptj
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_llama
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi.modeling_phi import apply_rotary_pos_emb as rotate_phi
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.stablelm.modeling_stablelm import apply_rotary_pos_emb as rotate_stablelm

from quire.kernels.cases import Case
from quire.kernels.fused_qk_ragged_rope import fused_qk_ragged_rope
from quire.kernels.fused_qk_ragged_rope.cases import (
    CASES,
    FP8_CACHE,
    SMALL_CASES,
    VARIANT_CASES,
    rope_case,
)
from quire.kernels.fused_qk_ragged_rope.kernel import fused_qk_ragged_rope_triton
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.split_qkv_ragged.cases import one_token_contexts

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
Rope = Callable[..., torch.Tensor]
PATHS = [
    pytest.param(fused_qk_ragged_rope, id="cpu"),
    pytest.param(fused_qk_ragged_rope_triton, id="triton"),
]
UNQUANTIZED = [case for case in SMALL_CASES + VARIANT_CASES if "fp8" not in case.name]


def normed_by_transformers(
    x_THD: torch.Tensor, weight: torch.Tensor | None, inputs: dict[str, Any]
) -> torch.Tensor:
    if weight is None:
        return x_THD
    if inputs["norm_weight_offset"]:
        norm = Gemma3RMSNorm(len(weight), inputs["epsilon"])
    elif inputs["multiply_before_cast"]:
        norm = Olmo2RMSNorm(len(weight), inputs["epsilon"])
    else:
        norm = Qwen3RMSNorm(len(weight), inputs["epsilon"])
    norm.weight.data = weight
    with torch.no_grad():
        rows = x_THD if len(weight) == x_THD.shape[2] else x_THD.flatten(1)
        result: torch.Tensor = norm(rows)
    return result.view(x_THD.shape)


def rotated_by_transformers(x_THD: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """In float32, after the model's own rotation and its slicing of partial ones."""
    positions = inputs["batch"].positions.long()
    rotary_dim = inputs["cos_sin"].shape[1]
    cos, sin = inputs["cos_sin"][positions].chunk(2, -1)
    turned, passed = x_THD[..., :rotary_dim].float(), x_THD[..., rotary_dim:].float()
    if inputs["interleaved"]:
        turned = rotate_gptj(turned[None], sin[None], cos[None])[0]
    else:
        wide = [torch.cat((angles, angles), -1)[None] for angles in (cos, sin)]
        heads_first = turned.transpose(0, 1)[None]
        rotate = rotate_llama if rotary_dim == x_THD.shape[2] else rotate_phi
        turned = rotate(heads_first, heads_first, *wide)[0][0].transpose(0, 1)
    return torch.cat((turned, passed), -1)


def by_transformers(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q and k of the tokens, [T, heads, D], as HF computes them, and v as it is."""
    heads, (_, kv_heads, _, head_dim) = inputs["num_heads"], inputs["k_cache"].shape
    qkv = inputs["qkv"].view(len(inputs["qkv"]), -1, head_dim)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], 1)
    q, k = (
        rotated_by_transformers(normed_by_transformers(x, inputs[name], inputs), inputs)
        for x, name in ((q, "q_norm"), (k, "k_norm"))
    )
    return q, k, v


def written(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    page_size = cache.shape[2]
    return cache[slots // page_size, :, slots % page_size]


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert torch.equal(
        actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    )


def tokens_alone(batch: RaggedBatch, start: int, stop: int) -> RaggedBatch:
    return one_token_contexts(batch.positions[start:stop], batch.slots[start:stop])


@pytest.mark.parametrize("case", UNQUANTIZED, ids=lambda case: case.name)
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
    assert_same_bits(v, expected[2])


@pytest.mark.parametrize(
    "case",
    [
        rope_case("llama", torch.float32, (4, 2, 32), ((1, 37), (9, 50))),
        *(case for case in VARIANT_CASES if case.name in ("cohere-fp32", "phi-fp32")),
    ],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("rope", PATHS)
def test_without_norms_equals_transformers_bit_for_bit_in_fp32(rope: Rope, case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))
    q = rope(**inputs)
    expected_q, expected_k, _ = by_transformers(inputs)
    assert_same_bits(q, expected_q)
    assert_same_bits(written(inputs["k_cache"], inputs["batch"].slots), expected_k)


def test_interleaved_equals_cohere_and_deepseek_in_its_order() -> None:
    inputs = VARIANT_CASES[0].build(CPU, torch.Generator().manual_seed(6))
    q = fused_qk_ragged_rope(**inputs)
    head_dim = q.shape[2]
    x = inputs["qkv"].view(len(q), -1, head_dim)[:, : q.shape[1]].transpose(0, 1)[None]
    cos, sin = inputs["cos_sin"][inputs["batch"].positions.long()].chunk(2, -1)

    twice = [angles.repeat_interleave(2, -1)[None] for angles in (cos, sin)]
    assert_same_bits(q, rotate_cohere(x, x, *twice)[0][0].transpose(0, 1))

    wide = [torch.cat((angles, angles), -1)[None] for angles in (cos, sin)]
    deepseek = apply_rotary_pos_emb_interleave(x, x, *wide)[0][0].transpose(0, 1)
    assert_same_bits(torch.cat((q[..., ::2], q[..., 1::2]), -1), deepseek)


def test_partial_rotation_equals_stablelm() -> None:
    inputs = next(case for case in VARIANT_CASES if case.name == "phi-fp32").build(
        CPU, torch.Generator().manual_seed(7)
    )
    q = fused_qk_ragged_rope(**inputs)
    rotary_dim = inputs["cos_sin"].shape[1]
    x = inputs["qkv"].view(len(q), -1, q.shape[2])[:, : q.shape[1]]
    cos, sin = inputs["cos_sin"][inputs["batch"].positions.long()].chunk(2, -1)
    wide = [torch.cat((angles, angles), -1)[None] for angles in (cos, sin)]
    turned = x[..., :rotary_dim].transpose(0, 1)[None]

    expected = rotate_stablelm(turned, turned, *wide)[0][0].transpose(0, 1)

    assert_same_bits(q, torch.cat((expected, x[..., rotary_dim:]), -1))


@pytest.mark.parametrize("name", ["norms-bf16", "gemma-bf16", "olmo-bf16"])
@pytest.mark.parametrize("rope", PATHS)
def test_norms_round_where_transformers_does(rope: Rope, name: str) -> None:
    """Rounded at another place, a fifth of the elements would differ; rsqrt moves a few."""
    case = next(case for case in SMALL_CASES + VARIANT_CASES if case.name == name)
    inputs = case.build(CPU, torch.Generator().manual_seed(9))
    q = rope(**inputs)
    expected_q, expected_k, _ = by_transformers(inputs)
    k = written(inputs["k_cache"], inputs["batch"].slots)
    for actual, expected in ((q, expected_q), (k, expected_k)):
        assert (actual == expected.bfloat16()).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rope", PATHS)
def test_fp8_caches_hold_the_fp32_rotation_divided_by_the_scale(
    rope: Rope, dtype: torch.dtype
) -> None:
    case = next(c for c in VARIANT_CASES if "fp8" in c.name and c.dtype == dtype)
    inputs = case.build(CPU, torch.Generator().manual_seed(8))
    rope(**inputs)
    _, k, v = by_transformers(inputs)

    for name, values, scale in (
        ("k_cache", k, inputs["k_scale"]),
        ("v_cache", v, inputs["v_scale"]),
    ):
        scaled = values.float() / scale
        assert name == "k_cache" or (scaled.abs() > 448).any()
        expected = scaled.clamp(-448, 448).to(FP8)
        stored = written(inputs[name].view(torch.uint8), inputs["batch"].slots)
        assert torch.equal(stored, expected.view(torch.uint8))


@pytest.mark.parametrize("rope", PATHS)
def test_scales_may_be_whole_numbers(rope: Rope) -> None:
    case = rope_case("", torch.float32, (2, 1, 16), ((1, 3),), variant=FP8_CACHE)
    whole, real = (case.build(CPU, torch.Generator().manual_seed(8)) for _ in range(2))

    rope(**whole | {"k_scale": 1, "v_scale": 2})
    rope(**real | {"k_scale": 1.0, "v_scale": 2.0})

    for name in ("k_cache", "v_cache"):
        assert_same_bits(whole[name], real[name])


@pytest.mark.parametrize("case", [SMALL_CASES[0], VARIANT_CASES[0]], ids=lambda case: case.name)
@pytest.mark.parametrize("rope", PATHS)
def test_only_the_slots_of_the_batch_are_written(rope: Rope, case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(3))
    rope(**inputs)
    slots = inputs["batch"].slots
    for name in ("k_cache", "v_cache"):
        is_written = ~inputs[name].isnan()
        assert written(is_written, slots).all()
        assert is_written.sum() == len(slots) * inputs[name][0, :, 0].numel()


def assert_tokens_are_exact_alone(
    rope: Rope, case: Case, cuts: Callable[[int], list[tuple[int, int]]]
) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(4))
    whole = rope(**inputs)
    batch, qkv = inputs["batch"], inputs["qkv"]
    names = ("k_cache", "v_cache")
    for start, stop in cuts(len(qkv)):
        part = tokens_alone(batch, start, stop)
        caches = {name: torch.zeros_like(inputs[name]) for name in names}
        alone = {**inputs, **caches, "qkv": qkv[start:stop].clone(), "batch": part}
        assert_same_bits(rope(**alone), whole[start:stop])
        for name in names:
            expected = inputs[name].view(torch.uint8)
            actual = caches[name].view(torch.uint8)
            assert_same_bits(written(actual, part.slots), written(expected, part.slots))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bits_of_a_token_do_not_depend_on_its_batch(threads: int, case: Case) -> None:
    assert_tokens_are_exact_alone(
        fused_qk_ragged_rope,
        case,
        lambda tokens: [
            (0, 1),
            (tokens - 1, tokens),
            (1, max(tokens // 2, 2)),
            (tokens // 2, tokens),
        ],
    )


@pytest.mark.parametrize("name", ["gptj-norms-fp32", "gemma-bf16", "olmo-fp32", "fp8-cache-bf16"])
def test_triton_bits_of_a_token_do_not_depend_on_its_batch(name: str) -> None:
    case = next(case for case in VARIANT_CASES if case.name == name)
    assert_tokens_are_exact_alone(
        fused_qk_ragged_rope_triton, case, lambda tokens: [(tokens - 1, tokens)]
    )


@pytest.mark.parametrize("rope", PATHS)
def test_no_tokens_write_nothing(rope: Rope) -> None:
    inputs = SMALL_CASES[0].build(CPU, torch.Generator().manual_seed(5))
    nothing = {"qkv": inputs["qkv"][:0], "batch": tokens_alone(inputs["batch"], 0, 0)}

    assert rope(**inputs | nothing).shape == (0, 4, 32)
    assert inputs["k_cache"].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"qkv": torch.zeros(15, 100)},
            r"qkv must have \(4 \+ 2 \* 2\) \* 32 columns, got 100",
        ),
        (
            {"qkv": torch.zeros(16, 256)},
            "qkv must have a row for each of the batch's 15 tokens, got 16",
        ),
        (
            {"qkv": torch.zeros(15, 256, dtype=torch.bfloat16)},
            "k_cache must be of bfloat16 or float8_e4m3fn, got float32",
        ),
        ({"qkv": torch.zeros(15, 256).int()}, "qkv must be of bfloat16 or float16 or float32"),
        ({"qkv": torch.zeros(256, 15).T}, "qkv must be contiguous"),
        (
            {"cos_sin": torch.zeros(99, 34)},
            "cos_sin must have an even number of columns from 2 to 32, got 34",
        ),
        ({"cos_sin": torch.zeros(99, 15)}, "even number of columns from 2 to 32, got 15"),
        ({"cos_sin": torch.zeros(99, 0)}, "even number of columns from 2 to 32, got 0"),
        ({"cos_sin": torch.zeros(99, 32).double()}, "cos_sin must be of float32, got float64"),
        ({"q_norm": torch.zeros(16)}, r"q_norm must be \[32\] or \[128\], got \[16\]"),
        ({"k_norm": torch.zeros(128)}, r"k_norm must be \[32\] or \[64\], got \[128\]"),
        ({"k_norm": torch.zeros(32).half()}, "k_norm must be of float32, got float16"),
        ({"q_norm": torch.zeros(1, 32)}, r"q_norm must be \[N\], got \[1, 32\]"),
        ({"v_cache": torch.zeros(1, 2, 16, 32)}, r"v_cache must be \[16, 2, 16, 32\], got \[1, 2"),
        ({"k_scale": 2.0}, "k_scale must be 1 unless k_cache is float8_e4m3fn, got 2.0"),
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


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_wrong_scales_are_named(scale: float) -> None:
    case = rope_case("", torch.float32, (4, 2, 32), ((1, 3),), variant=FP8_CACHE)
    inputs = case.build(CPU, torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match=f"v_scale must be positive and finite, got {scale}"):
        fused_qk_ragged_rope(**{**inputs, "v_scale": scale})
