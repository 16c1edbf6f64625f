"""The decoder: blocks between an embedding and the logits."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from quire.kernels.flash_attention_ragged import plan_decode
from quire.kernels.ragged_batch import RaggedBatch
from quire.kernels.sampling import widen_logits
from quire.pipelines.architectures.rope_spec import RopeSpec
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.kv_cache.params import group_layers
from quire.pipelines.kv_cache.storage import LayerCache
from quire.pipelines.nn.block_program import BlockProgram
from quire.pipelines.nn.chunked_batch import ChunkedBatches
from quire.pipelines.nn.embedding import Embedding
from quire.pipelines.nn.linear_weight import Apply
from quire.pipelines.nn.norm import Norm
from quire.pipelines.nn.transformer_block import TransformerBlock


class Transformer:
    """Token ids to logits.

    `tables` has the rotary table of each embedding that a block names, fp32 [max_length, R].
    `positions` [max_length, C] is added to the embedding where positions are learned.
    """

    def __init__(
        self,
        spec: ModelSpec,
        embedding: Embedding,
        blocks: Sequence[TransformerBlock],
        norm: Norm,
        lm_head: Apply,
        tables: Mapping[RopeSpec, torch.Tensor],
        positions: torch.Tensor | None = None,
    ) -> None:
        self.embedding = embedding
        self.blocks = tuple(blocks)
        self.norm = norm
        self.lm_head = lm_head
        group_of = {
            layer: index
            for index, group in enumerate(group_layers(spec.kv_layers))
            for layer in group.layers
        }
        # Per block, its rotary table and its page group: hashing a rope takes time in every step.
        self._tables = tuple(tables[block.rope] for block in self.blocks)
        self._groups = tuple(group_of[layer] for layer in range(len(self.blocks)))
        self._positions = positions
        self._vocab_size = spec.vocab_size
        self._logit_scale = spec.logit_scale
        self._logit_soft_cap = spec.logit_soft_cap

    @cached_property
    def _program(self) -> BlockProgram:
        """Made at the first step: a custom architecture may put layers of its own into blocks."""
        return BlockProgram(self.blocks, self.norm, self._tables, self._groups)

    def __call__(
        self,
        tokens_T: torch.Tensor,
        batches: Sequence[RaggedBatch],
        caches: Sequence[LayerCache],
        logit_rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """Run a step: write its KV into `caches`, one per layer.

        `tokens_T` int32. `batches`: of each page group (`group_layers`). Returns the logits of the
        tokens at `logit_rows_S` (int64), fp32 [S, V]; S may be 0.
        """
        if logit_rows_S.numel() == 0:
            self.hidden_states(tokens_T, batches, caches, logit_rows_S)
            empty = (0, self._vocab_size)
            return torch.empty(empty, dtype=torch.float32, device=tokens_T.device)
        return self.head(self.hidden_states(tokens_T, batches, caches, logit_rows_S))

    def head(self, hidden_SC: torch.Tensor) -> torch.Tensor:
        """The logits of what `hidden_states` gave, fp32 [S, V]."""
        logits = widen_logits(self.lm_head(hidden_SC))
        if self._logit_scale != 1.0:
            logits = logits * self._logit_scale
        if self._logit_soft_cap is not None:
            logits = torch.tanh(logits / self._logit_soft_cap) * self._logit_soft_cap
        return logits

    @torch.inference_mode()
    def hidden_states(
        self,
        tokens_T: torch.Tensor,
        batches: Sequence[RaggedBatch],
        caches: Sequence[LayerCache],
        rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """As a call, but what the logits are made of: [S, C] after the last norm."""
        x_TC: torch.Tensor = self.embedding(tokens_T)
        if self._positions is not None:
            x_TC = x_TC + self._positions[batches[0].positions.long()]
        if self._program.is_known:
            return self._program.run(x_TC, batches, caches, rows_S)
        x_TC, residual_TC = self._blocks(x_TC, batches, caches)
        # Not x_TC[rows_S], which on a CPU wakes torch's team of threads.
        residual_SC = None if residual_TC is None else residual_TC.index_select(0, rows_S)
        return self.norm(x_TC.index_select(0, rows_S), residual_SC)[0]

    def _blocks(
        self, x_TC: torch.Tensor, batches: Sequence[RaggedBatch], caches: Sequence[LayerCache]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        residual_TC: torch.Tensor | None = None
        plans = self._decode_plans(batches[0])
        chunked = ChunkedBatches(batches)
        layers = zip(self.blocks, self._tables, self._groups, caches, strict=True)
        for block, table, group, cache in layers:
            batch, plan = batches[group], plans.get(block.window)
            if block.chunk_size is not None:
                batch, plan = chunked.find(group, block.chunk_size, cache.k.shape[2])
            x_TC, residual_TC = block(x_TC, residual_TC, table, cache, batch, plan)
        return x_TC, residual_TC

    def _decode_plans(self, batch: RaggedBatch) -> dict[int | None, torch.Tensor]:
        """By window, the work list of the step's decode rows: made once, shared by all layers."""
        if not reads_plans(batch):
            return {}
        windows = {block.window for block in self.blocks if block.chunk_size is None}
        return {window: plan_decode(batch, sliding_window=window) for window in windows}


def reads_plans(batch: RaggedBatch) -> bool:
    """Whether the attention of this batch's device reads a plan."""
    return batch.cache_lengths.is_cuda and batch.num_decode > 0
