"""Latent attention, absorbed and decompressed, equals the attention of transformers' DeepSeek."""

import dataclasses
from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3

from quire.kernels.cases import random_ragged_batch
from quire.kernels.flare_mla_decode_ragged import flare_mla_decode_ragged
from quire.kernels.flare_mla_decode_ragged.kernel import flare_mla_decode_ragged_triton
from quire.kernels.flare_mla_prefill import (
    flare_mla_decompress_k_cache,
    flare_mla_prefill_plan,
    flare_mla_prefill_ragged,
)
from quire.kernels.flare_mla_prefill.kernel import (
    flare_mla_decompress_k_cache_triton,
    flare_mla_prefill_plan_triton,
    flare_mla_prefill_ragged_triton,
)

CPU = torch.device("cpu")
HEADS, NOPE, ROPE, VALUE, LATENT = 2, 24, 16, 32, 40
LENGTHS, NEW = (30, 30, 30), (1, 12, 30)
"""Keys of each sequence, and how many of its tokens are queries: a decode row and two chunks."""
PATHS = [
    pytest.param(flare_mla_decode_ragged, id="cpu"),
    pytest.param(flare_mla_decode_ragged_triton, id="triton"),
]
CHUNKED_PATHS = [
    pytest.param(
        (flare_mla_prefill_plan, flare_mla_decompress_k_cache, flare_mla_prefill_ragged), id="cpu"
    ),
    pytest.param(
        (
            flare_mla_prefill_plan_triton,
            flare_mla_decompress_k_cache_triton,
            flare_mla_prefill_ragged_triton,
        ),
        id="triton",
    ),
]


@dataclasses.dataclass(frozen=True)
class Oracle:
    """What a layer's attention got and gave, in float64: [sequence, token, ...]."""

    q: torch.Tensor
    latents: torch.Tensor
    k_rope: torch.Tensor
    out: torch.Tensor
    kv_b: torch.Tensor
    scale: float


@pytest.fixture(params=["deepseek_v2", "deepseek_v3"])
def oracle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    modeling, config_class, prefix = {
        "deepseek_v2": (modeling_deepseek_v2, DeepseekV2Config, "DeepseekV2"),
        "deepseek_v3": (modeling_deepseek_v3, DeepseekV3Config, "DeepseekV3"),
    }[request.param]
    config = config_class(
        hidden_size=64,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=48,
        kv_lora_rank=LATENT,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE,
        v_head_dim=VALUE,
        max_position_embeddings=64,
    )
    seen: dict[str, Any] = {}

    def capture(
        module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any,
        scaling: float, **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        result = modeling.eager_attention_forward(module, q, k, v, *args, scaling=scaling, **kwargs)
        seen.update(q=q.transpose(1, 2), k=k.transpose(1, 2), out=result[0], scale=scaling)
        return result

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "capture", capture)
    config._attn_implementation = "capture"
    torch.manual_seed(1)
    module = getattr(modeling, f"{prefix}Attention")(config, 0).double()
    module.kv_a_layernorm.register_forward_hook(
        lambda _module, _args, latents: seen.update(latents=latents)
    )
    length = LENGTHS[0]
    hidden = torch.randn(len(LENGTHS), length, 64, dtype=torch.float64)
    positions = torch.arange(length).expand(len(LENGTHS), -1)
    rope = getattr(modeling, f"{prefix}RotaryEmbedding")(config)(hidden, positions)
    mask = torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        module(hidden, attention_mask=mask, position_embeddings=rope)
    return Oracle(
        q=seen["q"],
        latents=seen["latents"].reshape(len(LENGTHS), length, LATENT),
        k_rope=seen["k"][:, :, 0, NOPE:],
        out=seen["out"].reshape(len(LENGTHS), length, HEADS, VALUE),
        kv_b=module.kv_b_proj.weight.detach(),
        scale=seen["scale"],
    )


def last_tokens(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of the step: the last tokens of each sequence, end to end."""
    return torch.cat([row[-count:] for row, count in zip(tensor, NEW, strict=True)])


def step(oracle: Oracle) -> tuple[dict[str, Any], torch.Tensor]:
    """The batch with latents in its pages (in float32), and what the attention should give."""
    old = [length - count for length, count in zip(LENGTHS, NEW, strict=True)]
    batch, num_pages = random_ragged_batch(NEW, old, 16, CPU, torch.Generator().manual_seed(2))
    cache = torch.full((num_pages, 16, LATENT + ROPE), torch.nan)
    rows = torch.cat((oracle.latents, oracle.k_rope), -1).float()
    for context, length in enumerate(LENGTHS):
        key = torch.arange(length)
        cache[batch.lookup_table[context].long()[key // 16], key % 16] = rows[context]
    return {"batch": batch, "latent_cache": cache}, last_tokens(oracle.out)


@pytest.mark.parametrize("attention", PATHS)
def test_absorbed(oracle: Oracle, attention: Any) -> None:
    inputs, expected = step(oracle)
    w_uk, w_uv = oracle.kv_b.view(HEADS, NOPE + VALUE, LATENT).split((NOPE, VALUE), 1)
    q_nope, q_rope = last_tokens(oracle.q).split((NOPE, ROPE), -1)
    q = torch.cat((torch.einsum("thn,hnl->thl", q_nope, w_uk), q_rope), -1).float()

    out = attention(q, **inputs, scale=oracle.scale, qk_rope_dim=ROPE)

    values = torch.einsum("thl,hvl->thv", out.double(), w_uv)
    torch.testing.assert_close(values, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("ops", CHUNKED_PATHS)
def test_decompressed_in_chunks(oracle: Oracle, ops: Any) -> None:
    buffer_size, chunks = 40, 3
    plan, decompress, attend = ops
    inputs, expected = step(oracle)
    batch, cache = inputs["batch"], inputs["latent_cache"]
    weight = oracle.kv_b.float()
    rows, firsts, lengths = plan(batch, buffer_size, chunks)

    out = info = None
    for chunk in range(chunks):
        kv = decompress(
            cache,
            batch.lookup_table,
            rows[chunk],
            firsts[chunk],
            lengths[chunk : chunk + 1],
            weight,
            buffer_size,
        )
        k, v = kv.view(buffer_size, HEADS, NOPE + VALUE).split((NOPE, VALUE), -1)
        out, info = attend(
            last_tokens(oracle.q).float(),
            k,
            v,
            batch,
            rows[chunk],
            firsts[chunk],
            scale=oracle.scale,
            latent_cache=cache,
            qk_rope_dim=ROPE,
            prev_output=out,
            prev_softmax_info=info,
        )

    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)
