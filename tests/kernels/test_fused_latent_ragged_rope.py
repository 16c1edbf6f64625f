"""Queries and latents of MLA: equal to transformers' own, every slot written, exact per token."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3RMSNorm,
    apply_rotary_pos_emb,
)

from quire.kernels.cases import Case
from quire.kernels.fused_latent_ragged_rope import fused_latent_ragged_rope
from quire.kernels.fused_latent_ragged_rope.cases import SMALL_CASES, latent_rope_case
from quire.kernels.fused_latent_ragged_rope.kernel import fused_latent_ragged_rope_triton
from quire.kernels.split_qkv_ragged.cases import one_token_contexts

CPU = torch.device("cpu")
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Rope = Callable[..., torch.Tensor]
PATHS = [
    pytest.param(fused_latent_ragged_rope, id="cpu"),
    pytest.param(fused_latent_ragged_rope_triton, id="triton"),
]


def inputs_of(case: Case, seed: int = 1) -> dict[str, Any]:
    return case.build(CPU, torch.Generator().manual_seed(seed))


def written(inputs: dict[str, Any]) -> torch.Tensor:
    return inputs["latent_cache"].flatten(0, 1)[inputs["batch"].slots]


def by_transformers(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [T, H, L + R] and cached rows [T, L + R], rotations in float32."""
    latent_dim, rope_dim = len(inputs["kv_norm"]), inputs["cos_sin"].shape[1]
    q, key = inputs["q_THD"][..., -rope_dim:].float(), inputs["kv_TD"][:, None, latent_dim:].float()
    cos, sin = inputs["cos_sin"][inputs["batch"].positions.long()].chunk(2, -1)
    q, key = q.transpose(0, 1)[None], key.transpose(0, 1)[None]
    if inputs["interleaved"]:
        q, key = apply_rotary_emb(q, key, torch.complex(cos, sin)[None])
    else:
        wide = [torch.cat((angles, angles), -1)[None] for angles in (cos, sin)]
        q, key = apply_rotary_pos_emb(q, key, *wide)
    norm = DeepseekV3RMSNorm(latent_dim, inputs["epsilon"])
    norm.weight.data = inputs["kv_norm"]
    with torch.no_grad():
        latent = norm(inputs["kv_TD"][:, :latent_dim]).float()
    absorbed = inputs["absorbed_THL"].float()
    return (
        torch.cat([absorbed, q[0].transpose(0, 1)], -1),
        torch.cat([latent, key[0, 0]], -1),
    )


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rope", PATHS)
def test_equals_transformers(rope: Rope, case: Case) -> None:
    inputs = inputs_of(case)
    expected = by_transformers(inputs)

    out = rope(**inputs)

    assert out.is_contiguous()
    for actual, oracle in zip((out, written(inputs)), expected, strict=True):
        assert actual.dtype == case.dtype
        torch.testing.assert_close(actual.float(), oracle, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("rope", PATHS)
def test_only_the_slots_of_the_step_are_written(rope: Rope) -> None:
    inputs = inputs_of(SMALL_CASES[0])

    rope(**inputs)

    assert not written(inputs).isnan().any()
    inputs["latent_cache"].flatten(0, 1)[inputs["batch"].slots] = torch.nan
    assert inputs["latent_cache"].isnan().all()


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rope", PATHS)
def test_a_token_alone_has_the_bits_it_has_in_a_batch(
    rope: Rope, case: Case, same_bits: SameBits
) -> None:
    inputs = inputs_of(case)
    whole, rows = rope(**inputs), written(inputs)

    for token in (0, 3, len(whole) - 1):
        one = slice(token, token + 1)
        cut = {name: inputs[name][one] for name in ("q_THD", "absorbed_THL", "kv_TD")}
        batch = inputs["batch"]
        cut["batch"] = one_token_contexts(batch.positions[one], batch.slots[one])
        cut["latent_cache"] = torch.full_like(inputs["latent_cache"], torch.nan)
        alone = {**inputs, **cut}

        assert same_bits(rope(**alone), whole[one])
        assert same_bits(written(alone), rows[one])


def test_a_latent_is_written_far_into_the_cache() -> None:
    inputs = inputs_of(latent_rope_case("", torch.float16, (1, 8, 56, 8), ((1, 0),)))
    page = 2**31 // (16 * 64) + 3
    inputs["batch"] = one_token_contexts(
        torch.zeros(1, dtype=torch.int32), torch.tensor([page * 16 + 5])
    )
    near = {**inputs, "batch": one_token_contexts(torch.zeros(1).int(), torch.tensor([0]))}
    fused_latent_ragged_rope_triton(**near)
    # Zeros that the system backs where they are touched.
    far = torch.from_numpy(np.zeros((page + 1, 16, 64), dtype=np.float16))

    fused_latent_ragged_rope_triton(**{**inputs, "latent_cache": far})

    assert torch.equal(far[page, 5], near["latent_cache"][0, 0])


def test_wrong_inputs_are_named() -> None:
    inputs = inputs_of(latent_rope_case("", torch.float32, (2, 8, 16, 8), ((1, 3), (2, 2))))

    def rope(**changed: Any) -> None:
        fused_latent_ragged_rope(**{**inputs, **changed})

    with pytest.raises(ValueError, match=r"q_THD must be \[T, H, N \+ R\], got \[3, 2\]"):
        rope(q_THD=inputs["q_THD"][..., 0])
    with pytest.raises(ValueError, match=r"absorbed_THL must be \[3, 2, L\], got \[3, 1, 16\]"):
        rope(absorbed_THL=inputs["absorbed_THL"][:, :1])
    with pytest.raises(ValueError, match="columns of absorbed_THL must be contiguous"):
        rope(absorbed_THL=torch.ones(3, 16, 2).transpose(1, 2))
    with pytest.raises(ValueError, match=r"kv_TD must be \[3, 24\], got \[3, 16\]"):
        rope(kv_TD=inputs["kv_TD"][:, :16])
    with pytest.raises(ValueError, match=r"kv_norm must be \[16\], got \[8\]"):
        rope(kv_norm=inputs["kv_norm"][:8])
    with pytest.raises(ValueError, match="even number of columns from 2 to 16 .*, got 18 and 16"):
        rope(cos_sin=torch.ones(6, 18))
    with pytest.raises(ValueError, match=r"latent_cache must be \[P, page_size, 24\], got"):
        rope(latent_cache=inputs["latent_cache"][..., :16])
    with pytest.raises(ValueError, match="latent_cache must be of float32, got bfloat16"):
        rope(latent_cache=inputs["latent_cache"].bfloat16())
    with pytest.raises(ValueError, match="q_THD must have a row for each of the batch's 1 tokens"):
        rope(batch=one_token_contexts(torch.zeros(1).int(), torch.tensor([0])))
