"""Latent attention: close to torch's in float64, and a token's bits follow from its context alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, random_ragged_batch
from quire.kernels.flare_mla_decode_ragged import flare_mla_decode_ragged
from quire.kernels.flare_mla_decode_ragged.cases import SMALL_CASES, latent_case
from quire.kernels.flare_mla_decode_ragged.kernel import flare_mla_decode_ragged_triton
from quire.kernels.flare_mla_decode_ragged.reference import flare_mla_decode_ragged_reference
from quire.kernels.flash_attention_ragged import plan_decode
from quire.kernels.native import InstructionSet, library

CPU = torch.device("cpu")
NATIVE = library()
SETS = () if NATIVE is None else tuple(s for s in InstructionSet if s <= NATIVE.instruction_set)
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Attention = Callable[..., torch.Tensor]
PATHS = [
    pytest.param(flare_mla_decode_ragged, id="cpu"),
    pytest.param(flare_mla_decode_ragged_triton, id="triton"),
]


def sdpa(inputs: dict[str, Any]) -> torch.Tensor:
    """torch's attention in float64, one key head for all query heads."""
    batch, cache = inputs["batch"], inputs["latent_cache"]
    latent_dim = cache.shape[2] - inputs["qk_rope_dim"]
    q = inputs["q_THD"].double().split(batch.query_lengths)
    outs = []
    for context, (count, length) in enumerate(
        zip(batch.query_lengths, batch.kv_lengths, strict=True)
    ):
        key = torch.arange(length)
        page = batch.lookup_table[context].long()[key // cache.shape[1]]
        keys = cache[page, key % cache.shape[1]].double()
        visible = torch.ones(count, length, dtype=torch.bool).tril(length - count)
        out = F.scaled_dot_product_attention(
            q[context].transpose(0, 1)[None],
            keys[None, None],
            keys[None, None, :, :latent_dim],
            attn_mask=visible,
            scale=inputs["scale"],
            enable_gqa=True,
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_equals_torch_in_float64(case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))

    out = flare_mla_decode_ragged(**inputs)

    assert out.dtype == case.dtype
    torch.testing.assert_close(out.double(), sdpa(inputs), atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: chosen.name.lower())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", [(512, 64), (512, 128), (40, 8)])
def test_every_compiled_variant_equals_torch_in_float64(
    widths: tuple[int, int],
    dtype: torch.dtype,
    chosen: InstructionSet,
    monkeypatch: pytest.MonkeyPatch,
    same_bits: SameBits,
) -> None:
    monkeypatch.setattr(NATIVE, "instruction_set", chosen)
    case = latent_case("", dtype, (5, *widths), ((1, 600), (1, 14), (20, 30)), 64)
    inputs = case.build(CPU, torch.Generator().manual_seed(2))

    out = flare_mla_decode_ragged(**inputs)

    torch.testing.assert_close(out.double(), sdpa(inputs), atol=case.tolerance, rtol=0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert same_bits(flare_mla_decode_ragged(**inputs), out)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("way", ["no library", "float16", "pages of 8 tokens"])
def test_what_is_not_compiled_is_torch_s(
    way: str, monkeypatch: pytest.MonkeyPatch, same_bits: SameBits
) -> None:
    if way == "no library":
        monkeypatch.setattr("quire.kernels.flare_mla_decode_ragged.cpu.library", lambda: None)
    dtype = torch.float16 if way == "float16" else torch.float32
    page_size = 8 if way == "pages of 8 tokens" else 16
    case = latent_case("", dtype, (3, 16, 8), ((1, 30), (4, 9)), page_size)
    inputs = case.build(CPU, torch.Generator().manual_seed(2))

    assert same_bits(flare_mla_decode_ragged(**inputs), flare_mla_decode_ragged_reference(**inputs))


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_has_the_same_bits_however_it_is_scheduled(
    attention: Attention, dtype: torch.dtype, same_bits: SameBits
) -> None:
    """Prefilled at once or in chunks, decoded, alone or among others, on these pages or those."""
    generator = torch.Generator().manual_seed(3)
    heads, latent_dim, rope_dim, length = 3, 16, 8, 520
    latents = torch.randn(length, latent_dim + rope_dim, generator=generator).to(dtype)
    q = torch.randn(length, heads, latent_dim + rope_dim, generator=generator).to(dtype)

    def scheduled(cuts: list[tuple[int, int]], page_size: int) -> torch.Tensor:
        """A step with copies of one context, each with the tokens from start to end as queries."""
        batch, num_pages = random_ragged_batch(
            [end - start for start, end in cuts], [start for start, _ in cuts],
            page_size, CPU, generator,
        )  # fmt: skip
        cache = torch.full((num_pages, page_size, latent_dim + rope_dim), torch.nan).to(dtype)
        for context, (_, end) in enumerate(cuts):
            key = torch.arange(end)
            page = batch.lookup_table[context].long()[key // page_size]
            cache[page, key % page_size] = latents[:end]
        rows = torch.cat([q[start:end] for start, end in cuts])
        return attention(rows, cache, batch, scale=0.3, qk_rope_dim=rope_dim)

    first = 506
    expected = scheduled([(first, length)], 16)
    steps = [
        [(511, 512), (512, 513), (519, 520)],
        [(513, 514), (0, 3), (510, 518)],
        [(506, 508), (508, 513)],
    ]
    for cuts in steps:
        out = scheduled(cuts, 32)
        for (start, end), part in zip(
            cuts, out.split([end - start for start, end in cuts]), strict=True
        ):
            if start >= first:
                assert same_bits(part, expected[start - first : end - first]), (cuts, start)


def test_a_plan_may_be_shared_among_layers(same_bits: SameBits) -> None:
    inputs = latent_case("", torch.float32, (2, 16, 8), ((1, 700), (1, 3), (4, 2))).build(
        CPU, torch.Generator().manual_seed(4)
    )
    plan = plan_decode(inputs["batch"])

    out = flare_mla_decode_ragged_triton(**inputs, decode_plan=plan)

    assert same_bits(out, flare_mla_decode_ragged_triton(**inputs))


@pytest.mark.parametrize("attention", PATHS)
def test_no_tokens_give_no_rows(attention: Attention) -> None:
    batch, _ = random_ragged_batch([1], [0], 16, CPU, torch.Generator())
    none = type(batch)(
        input_row_offsets=torch.zeros(1, dtype=torch.int32),
        cache_lengths=batch.cache_lengths[:0],
        lookup_table=batch.lookup_table[:0],
        positions=batch.positions[:0],
        slots=batch.slots[:0],
        query_lengths=(),
        kv_lengths=(),
        num_decode=0,
    )

    out = attention(torch.ones(0, 2, 24), torch.ones(1, 16, 24), none, scale=1.0, qk_rope_dim=8)

    assert out.shape == (0, 2, 16)


def test_wrong_inputs_are_named() -> None:
    inputs = latent_case("", torch.float32, (2, 16, 8), ((1, 3), (2, 2))).build(
        CPU, torch.Generator().manual_seed(1)
    )
    q, cache = inputs["q_THD"], inputs["latent_cache"]

    def attend(**changed: Any) -> None:
        flare_mla_decode_ragged(**{**inputs, **changed})

    with pytest.raises(ValueError, match=r"q_THD must be \[T, H, L \+ R\], got \[3, 2\]"):
        attend(q_THD=q[..., 0])
    with pytest.raises(ValueError, match="q_THD must be of bfloat16 or .*, got float64"):
        attend(q_THD=q.double())
    with pytest.raises(ValueError, match=r"latent_cache must be \[P, page_size, 24\], got"):
        attend(latent_cache=cache[..., :16])
    with pytest.raises(ValueError, match="latent_cache must be of float32, got bfloat16"):
        attend(latent_cache=cache.bfloat16())
    with pytest.raises(ValueError, match="latent_cache must be contiguous"):
        attend(latent_cache=cache.transpose(0, 1).contiguous().transpose(0, 1))
    with pytest.raises(ValueError, match="qk_rope_dim must be a multiple of 8 .* to 128, got 4"):
        attend(qk_rope_dim=4)
    with pytest.raises(ValueError, match="width of q_THD less qk_rope_dim .* 8 to 512, got 0"):
        attend(qk_rope_dim=24)
    with pytest.raises(ValueError, match="q_THD must have a row for each of the batch's 3 tokens"):
        attend(q_THD=q[:2])
    with pytest.raises(ValueError, match=r"decode_plan must be \[2\], got \[3\]"):
        attend(decode_plan=torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="decode_plan must be of int32, got int64"):
        attend(decode_plan=torch.zeros(2, dtype=torch.int64))
