"""Multi-head latent attention over a paged cache of latents."""

import torch

from quire.config.errors import ConfigError
from quire.kernels.flare_mla_decode_ragged import flare_mla_decode_ragged
from quire.kernels.fused_latent_ragged_rope import fused_latent_ragged_rope
from quire.kernels.linear.tile_plan import TilePlans
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.architectures.latent_parts import (
    MAX_LATENT_DIM_FLOAT32_CUDA,
    LatentAttentionSpec,
)
from quire.pipelines.kv_cache.storage import LayerCache
from quire.pipelines.nn.head_linear import head_linear
from quire.pipelines.nn.linear import StackedLinear
from quire.pipelines.nn.norm import RMSNorm


class LatentAttention:
    """Causal attention over latents (https://arxiv.org/abs/2405.04434), ragged over contexts.

    The projection of latents to keys and values is absorbed: queries are projected to latents
    before the scores, results to values after them, so that what is read per key is the latent
    alone. Prefill goes the same way as decode, which keeps the bits of a token its own.

    `q_a` is the low-rank projection of queries with its norm, `kv_b` [H * (nope + value), latent]
    dense, in the dtype of activations. `plans` as of `Linear`.

    Raises:
        ConfigError: as of `check_served`.
    """

    def __init__(
        self,
        spec: LatentAttentionSpec,
        q_a: tuple[StackedLinear, RMSNorm] | None,
        wq: StackedLinear,
        kv_a: tuple[StackedLinear, RMSNorm],
        kv_b: torch.Tensor,
        wo: StackedLinear,
        plans: TilePlans | None,
    ) -> None:
        check_served(spec, kv_b.dtype, kv_b.device.type)
        self.spec = spec
        self.q_a = q_a
        self.wq = wq
        self.kv_a, self.kv_norm = kv_a
        self.wo = wo
        heads = kv_b.view(spec.num_heads, spec.nope_dim + spec.value_dim, spec.latent_dim)
        keys, values = torch.split(heads, [spec.nope_dim, spec.value_dim], 1)
        self.to_latents = head_linear(keys.transpose(1, 2), plans)
        self.to_values = head_linear(values, plans)

    def __call__(
        self,
        x_TC: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        batch: RaggedBatch,
        decode_plan: torch.Tensor | None = None,
    ) -> torch.Tensor:
        spec = self.spec
        q_THD = self._queries(x_TC).view(-1, spec.num_heads, spec.nope_dim + spec.rope_dim)
        latents = cache.k.squeeze(1)
        absorbed_THD = fused_latent_ragged_rope(
            q_THD,
            self.to_latents(q_THD[..., : spec.nope_dim]),
            self.kv_a(x_TC),
            self.kv_norm.weight,
            cos_sin,
            latents,
            batch,
            epsilon=self.kv_norm.epsilon,
            interleaved=spec.rope.is_interleaved,
        )
        out_THL = flare_mla_decode_ragged(
            absorbed_THD,
            latents,
            batch,
            scale=spec.scale,
            qk_rope_dim=spec.rope_dim,
            decode_plan=decode_plan,
        )
        return self.wo(self.to_values(out_THL).flatten(1))

    def _queries(self, x_TC: torch.Tensor) -> torch.Tensor:
        if self.q_a is not None:
            q_a, norm = self.q_a
            x_TC = norm(q_a(x_TC))[0]
        return self.wq(x_TC)


def check_served(spec: LatentAttentionSpec, dtype: torch.dtype, device_type: str) -> None:
    """Raise ConfigError for float32 on a GPU, with latents that its registers do not hold."""
    widest = MAX_LATENT_DIM_FLOAT32_CUDA
    if device_type == "cuda" and dtype == torch.float32 and spec.latent_dim > widest:
        raise ConfigError(
            f"dtype float32 is served on a GPU up to a kv_lora_rank of {widest}, found "
            f"{spec.latent_dim}: use bfloat16"
        )
