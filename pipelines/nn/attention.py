"""Self-attention over the paged KV cache."""

import torch

from quire.kernels.flash_attention_ragged import flash_attention_ragged
from quire.kernels.fused_qk_ragged_rope import fused_qk_ragged_rope
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.kv_cache.storage import LayerCache
from quire.pipelines.nn.linear import Linear
from quire.pipelines.nn.norm import RMSNorm


class AttentionWithRope:
    """Causal grouped-query attention with rotary embedding, ragged over contexts.

    `wqkv` is q, k and v stacked. `qk_norm` normalizes each query and key head before the
    rotation (Qwen3). `sliding_window` limits a token to the last that many keys, its own included.
    """

    def __init__(
        self,
        wqkv: Linear,
        wo: Linear,
        *,
        num_heads: int,
        head_dim: int,
        qk_norm: tuple[RMSNorm, RMSNorm] | None = None,
        sliding_window: int | None = None,
    ) -> None:
        self.wqkv = wqkv
        self.wo = wo
        self.num_heads = num_heads
        self.qk_norm = qk_norm
        self.sliding_window = sliding_window
        self.scale = head_dim**-0.5

    def __call__(
        self,
        x_TC: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        batch: RaggedBatch,
        decode_plan: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend, after writing this step's keys and values into their pages.

        `decode_plan`: of `plan_decode` for this batch and window, where the device reads one.
        """
        q_norm, k_norm = self.qk_norm or (None, None)
        q_THD = fused_qk_ragged_rope(
            self.wqkv(x_TC),
            cos_sin,
            cache.k,
            cache.v,
            batch,
            num_heads=self.num_heads,
            q_norm=q_norm.weight if q_norm else None,
            k_norm=k_norm.weight if k_norm else None,
            epsilon=q_norm.epsilon if q_norm else 0.0,
        )
        out_THD = flash_attention_ragged(
            q_THD,
            cache.k,
            cache.v,
            batch,
            scale=self.scale,
            sliding_window=self.sliding_window,
            decode_plan=decode_plan,
        )
        return self.wo(out_THD.flatten(1))
