"""A block of the decoder: attention and feed-forward, with their norms."""

from collections.abc import Mapping

import torch

from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.architectures.parts import LayerSpec
from quire.pipelines.kv_cache.storage import LayerCache
from quire.pipelines.nn.attention import Attention
from quire.pipelines.nn.linear_weight import Apply
from quire.pipelines.nn.norm import Norm


class TransformerBlock:
    """Attention and feed-forward; the residual stream travels beside the hidden states.

    `norms` has those that `spec` names, by its field.
    """

    def __init__(
        self, spec: LayerSpec, attention: Attention, mlp: Apply, norms: Mapping[str, Norm]
    ) -> None:
        self.attention = attention
        self.mlp = mlp
        self.rope = spec.attention.rope
        self.window = spec.attention.kv_layer.window
        self.chunk_size = spec.attention.chunk_size
        self.is_parallel = spec.is_parallel
        self.multiplier = spec.residual_multiplier
        self.norms = norms

    def __call__(
        self,
        x_TC: torch.Tensor,
        residual_TC: torch.Tensor | None,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        batch: RaggedBatch,
        decode_plan: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's own output and the residual to which the next norm adds it."""
        normed_TC, residual_TC = self._before("attention_norm", x_TC, residual_TC)
        x_TC = self.attention(normed_TC, cos_sin, cache, batch, decode_plan)
        x_TC = self._after("attention_post_norm", x_TC)
        if self.is_parallel:
            if "mlp_norm" in self.norms:
                normed_TC = self.norms["mlp_norm"](residual_TC)[0]
            return x_TC + self._after("mlp_post_norm", self.mlp(normed_TC)), residual_TC
        normed_TC, residual_TC = self._before("mlp_norm", x_TC, residual_TC)
        return self._after("mlp_post_norm", self.mlp(normed_TC)), residual_TC

    def _before(
        self, name: str, x_TC: torch.Tensor, residual_TC: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a part reads, and the stream so far."""
        if name in self.norms:
            return self.norms[name](x_TC, residual_TC)
        stream = x_TC if residual_TC is None else x_TC + residual_TC
        return stream, stream

    def _after(self, name: str, x_TC: torch.Tensor) -> torch.Tensor:
        """What a part adds to the stream."""
        if name in self.norms:
            x_TC = self.norms[name](x_TC)[0]
        return x_TC if self.multiplier == 1.0 else x_TC * self.multiplier
