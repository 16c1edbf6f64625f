"""The decoder: blocks between an embedding and the logits."""

from collections.abc import Sequence

import torch

from quire.kernels.flash_attention_ragged import plan_decode
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.kv_cache.storage import LayerCache
from quire.pipelines.nn.attention import AttentionWithRope
from quire.pipelines.nn.embedding import Embedding
from quire.pipelines.nn.linear import Linear
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.norm import RMSNorm


class TransformerBlock:
    """Pre-norm attention and feed-forward; the residual stream travels beside the hidden states."""

    def __init__(
        self,
        attention_norm: RMSNorm,
        attention: AttentionWithRope,
        mlp_norm: RMSNorm,
        mlp: MLP,
    ) -> None:
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

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
        x_TC, residual_TC = self.attention_norm(x_TC, residual_TC)
        x_TC = self.attention(x_TC, cos_sin, cache, batch, decode_plan)
        x_TC, residual_TC = self.mlp_norm(x_TC, residual_TC)
        return self.mlp(x_TC), residual_TC


class Transformer:
    """Token ids to logits. `cos_sin` is the rotary table, fp32 [max_length, D]."""

    def __init__(
        self,
        embedding: Embedding,
        blocks: Sequence[TransformerBlock],
        norm: RMSNorm,
        lm_head: Linear,
        cos_sin: torch.Tensor,
    ) -> None:
        self.embedding = embedding
        self.blocks = tuple(blocks)
        self.norm = norm
        self.lm_head = lm_head
        self.cos_sin = cos_sin

    def __call__(
        self,
        tokens_T: torch.Tensor,
        batch: RaggedBatch,
        caches: Sequence[LayerCache],
        logit_rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """Run a step: write its KV into `caches`, one per layer.

        `tokens_T` int32. Returns the logits of the tokens at `logit_rows_S` (int64), fp32 [S, V];
        S may be 0.
        """
        if logit_rows_S.numel() == 0:
            self._blocks(tokens_T, batch, caches)
            return self.cos_sin.new_empty((0, self.lm_head.out_dim))
        return self.head(self.hidden_states(tokens_T, batch, caches, logit_rows_S))

    def head(self, hidden_SC: torch.Tensor) -> torch.Tensor:
        """The logits of what `hidden_states` gave, fp32 [S, V]."""
        return self.lm_head(hidden_SC).float()

    @torch.inference_mode()
    def hidden_states(
        self,
        tokens_T: torch.Tensor,
        batch: RaggedBatch,
        caches: Sequence[LayerCache],
        rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """As a call, but what the logits are made of: [S, C] after the last norm."""
        x_TC, residual_TC = self._blocks(tokens_T, batch, caches)
        residual_SC = None if residual_TC is None else residual_TC[rows_S]
        return self.norm(x_TC[rows_S], residual_SC)[0]

    def _blocks(
        self, tokens_T: torch.Tensor, batch: RaggedBatch, caches: Sequence[LayerCache]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_TC: torch.Tensor = self.embedding(tokens_T)
        residual_TC: torch.Tensor | None = None
        plans = self._decode_plans(batch)
        for block, cache in zip(self.blocks, caches, strict=True):
            plan = plans.get(block.attention.sliding_window)
            x_TC, residual_TC = block(x_TC, residual_TC, self.cos_sin, cache, batch, plan)
        return x_TC, residual_TC

    def _decode_plans(self, batch: RaggedBatch) -> dict[int | None, torch.Tensor]:
        """By window, the work list of the step's decode rows: made once, shared by all layers."""
        if not reads_plans(batch):
            return {}
        windows = {block.attention.sliding_window for block in self.blocks}
        return {window: plan_decode(batch, sliding_window=window) for window in windows}


def reads_plans(batch: RaggedBatch) -> bool:
    """Whether the attention of this batch's device reads a plan."""
    return batch.cache_lengths.is_cuda and batch.num_decode > 0
