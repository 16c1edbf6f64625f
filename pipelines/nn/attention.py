"""Self-attention over the paged KV cache."""

import math
from typing import Protocol

import torch

from quire.kernels.flash_attention_ragged import flash_attention_ragged
from quire.kernels.fused_qk_ragged_rope import fused_qk_ragged_rope
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.architectures.parts import AttentionSpec, QueryScale
from quire.pipelines.kv_cache.storage import LayerCache
from quire.pipelines.nn.linear import StackedLinear
from quire.pipelines.nn.norm import HeadLayerNorm, RMSNorm


class Attention(Protocol):
    """What a block attends with."""

    def __call__(
        self,
        x_TC: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        batch: RaggedBatch,
        decode_plan: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend, after writing this step's keys and values into their pages.

        `cos_sin` is the layer's rotary table. `decode_plan`: of `plan_decode` for this batch and
        the layer's window, where the device reads one.
        """
        ...


class PositionScale:
    """What queries are multiplied by, for positions below `max_length`, in `dtype`."""

    def __init__(
        self, spec: QueryScale, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # A table: a logarithm's last bit may depend on where in a tensor its number lies.
        steps = range((max_length + spec.offset) // spec.length + 1)
        scales = [1 + spec.beta * math.log(1 + step) for step in steps]
        self._length = spec.length
        self._offset = spec.offset
        self._table = torch.tensor(scales).to(device, dtype if spec.is_rounded else torch.float32)

    def __call__(self, positions_T: torch.Tensor) -> torch.Tensor:
        """The factor of each position, [T]."""
        return self._table[(positions_T.long() + self._offset) // self._length]


class AttentionWithRope:
    """Causal grouped-query attention with rotary embedding, ragged over contexts.

    `wqkv` is q, k and v stacked; options are those of `spec`. `sinks` float32 [H].
    """

    def __init__(
        self,
        spec: AttentionSpec,
        wqkv: StackedLinear,
        wo: StackedLinear,
        qk_norm: tuple[RMSNorm, RMSNorm] | None = None,
        sinks: torch.Tensor | None = None,
        query_scale: PositionScale | None = None,
        head_norm: HeadLayerNorm | None = None,
    ) -> None:
        self.spec = spec
        self.wqkv = wqkv
        self.wo = wo
        self.qk_norm = qk_norm
        self.sinks = sinks
        self.query_scale = query_scale
        self.head_norm = head_norm

    def __call__(
        self,
        x_TC: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        batch: RaggedBatch,
        decode_plan: torch.Tensor | None = None,
    ) -> torch.Tensor:
        spec = self.spec
        q_norm, k_norm = self.qk_norm or (None, None)
        qkv_TN = self.wqkv(x_TC)
        if self.head_norm is not None:
            qkv_TN = self.head_norm(qkv_TN)
        q_THD = fused_qk_ragged_rope(
            qkv_TN,
            cos_sin,
            cache.k,
            cache.v,
            batch,
            num_heads=spec.num_heads,
            q_norm=q_norm.weight if q_norm else None,
            k_norm=k_norm.weight if k_norm else None,
            epsilon=q_norm.epsilon if q_norm else 0.0,
            interleaved=spec.rope.is_interleaved,
            norm_weight_offset=q_norm.weight_offset if q_norm else 0.0,
            multiply_before_cast=q_norm.multiply_before_cast if q_norm else False,
        )
        if self.query_scale is not None:
            scale_T = self.query_scale(batch.positions)
            q_THD = (q_THD * scale_T[:, None, None]).to(q_THD.dtype)
        out_THD = flash_attention_ragged(
            q_THD,
            cache.k,
            cache.v,
            batch,
            scale=spec.scale,
            sliding_window=spec.sliding_window,
            soft_cap=spec.soft_cap,
            sinks=self.sinks,
            decode_plan=decode_plan,
        )
        return self.wo(out_THD.flatten(1))
