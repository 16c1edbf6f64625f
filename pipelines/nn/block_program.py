"""The blocks of a model and its last norm as one call of the compiled library, where all of them have
a form that it knows: self-attention with rotary embedding and a dense feed-forward, each behind a
norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from quire.kernels.linear.cpu_native import CompiledLinear
from quire.kernels.native import library
from quire.kernels.native.program import Program
from quire.kernels.native.row_ops import LAYER, MAX_ROPE_DIM, RMS, RMS_ROUNDED_ONCE
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.kv_cache.storage import LayerCache
from quire.pipelines.nn.attention import AttentionWithRope
from quire.pipelines.nn.linear import StackedLinear
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.norm import LayerNorm, Norm, RMSNorm
from quire.pipelines.nn.transformer_block import TransformerBlock

STREAM, X, FIRST, SECOND = range(4)
"""Buffers: the residual stream, what is to be added to it, and two that layers write in turn."""


@dataclass(frozen=True, slots=True)
class PlainBlock:
    """The layers of a block, as a program takes them; `norms` by the names of the block."""

    norms: dict[str, RMSNorm | LayerNorm]
    attention: AttentionWithRope
    mlp: MLP
    qkv: CompiledLinear
    output: CompiledLinear
    up: CompiledLinear
    down: CompiledLinear

    @classmethod
    def of(cls, block: TransformerBlock) -> Self | None:
        """None where the block has another form, or other kernels compute it."""
        attention, mlp, norms = block.attention, block.mlp, block.norms
        # The very classes: who builds a model may derive from them and compute something else.
        if type(attention) is not AttentionWithRope or type(mlp) is not MLP:
            return None
        qkv, output = _compiled(attention.wqkv), _compiled(attention.wo)
        up, down = _compiled(mlp.up), _compiled(mlp.down)
        if qkv is None or output is None or up is None or down is None:
            return None
        known = {
            name: norm
            for name, norm in norms.items()
            if type(norm) is RMSNorm or type(norm) is LayerNorm
        }
        is_plain = (
            type(block) is TransformerBlock
            and not block.is_parallel
            and block.multiplier == 1.0
            and block.chunk_size is None
            and known.keys() == norms.keys()
            and {"attention_norm", "mlp_norm"} <= known.keys()
            and attention.query_scale is None
            and attention.head_norm is None
            and attention.spec.head_dim <= MAX_ROPE_DIM
        )
        return cls(known, attention, mlp, qkv, output, up, down) if is_plain else None

    def widths(self) -> tuple[int, int, int, int]:
        """Of the buffers."""
        hidden = self.output.out_features
        first = max(hidden, self.output.in_features, self.down.in_features)
        second = max(hidden, self.qkv.out_features, self.output.in_features, self.up.out_features)
        return hidden, hidden, first, second

    def add_to(
        self,
        program: Program,
        table: torch.Tensor,
        group: int,
        cache: LayerCache,
        *,
        is_first: bool,
    ) -> None:
        """Add the ops from STREAM, and X unless `is_first`, to what the next block takes."""
        self._norm(program, "attention_norm", STREAM if is_first else X, is_first=is_first)
        program.linear(FIRST, SECOND, self.qkv)
        self._attend(program, table, group, cache)
        program.linear(SECOND, X, self.output)
        self._post_norm(program, "attention_post_norm")
        self._norm(program, "mlp_norm", X)
        program.linear(FIRST, SECOND, self.up)
        kind, is_gated = self.mlp.activation_function, self.mlp.is_gated
        program.activation(SECOND, FIRST, kind, self.down.in_features, is_gated=is_gated)
        program.linear(FIRST, X, self.down)
        self._post_norm(program, "mlp_post_norm")

    def _norm(self, program: Program, name: str, source: int, *, is_first: bool = False) -> None:
        _add_norm(program, self.norms[name], source, FIRST, None if is_first else STREAM)

    def _post_norm(self, program: Program, name: str) -> None:
        if name in self.norms:
            _add_norm(program, self.norms[name], X, X, None)

    def _attend(self, program: Program, table: torch.Tensor, group: int, cache: LayerCache) -> None:
        spec = self.attention.spec
        q_norm, k_norm = self.attention.qk_norm or (None, None)
        program.rope(
            SECOND,
            FIRST,
            table,
            cache.k,
            cache.v,
            num_heads=spec.num_heads,
            q_norm=q_norm.weight if q_norm else None,
            k_norm=k_norm.weight if k_norm else None,
            epsilon=q_norm.epsilon if q_norm else 0.0,
            interleaved=spec.rope.is_interleaved,
            norm_weight_offset=q_norm.weight_offset if q_norm else 0.0,
            multiply_before_cast=q_norm.multiply_before_cast if q_norm else False,
            group=group,
        )
        program.attention(
            FIRST,
            SECOND,
            cache.k,
            cache.v,
            heads=spec.num_heads,
            scale=spec.scale,
            sliding_window=spec.sliding_window,
            soft_cap=spec.soft_cap,
            sinks=self.attention.sinks,
            group=group,
        )


def _compiled(layer: object) -> CompiledLinear | None:
    return layer.native if type(layer) is StackedLinear else None


def _add_norm(
    program: Program,
    norm: RMSNorm | LayerNorm,
    source: int,
    to: int,
    residual: int | None,
    *,
    is_of_picked: bool = False,
) -> None:
    if isinstance(norm, LayerNorm):
        kind, bias, offset = LAYER, norm.bias, 0.0
    else:
        kind = RMS_ROUNDED_ONCE if norm.multiply_before_cast else RMS
        bias, offset = None, norm.weight_offset
    program.norm(
        source,
        to,
        kind,
        norm.weight,
        bias,
        norm.epsilon,
        offset,
        residual=residual,
        is_of_picked=is_of_picked,
    )


class BlockProgram:
    """Runs all blocks and the last norm as they run one by one, with the same bits.

    Args:
        blocks: of the model.
        norm: behind them.
        tables: the rotary table of each block.
        groups: the page group of each block.
    """

    def __init__(
        self,
        blocks: Sequence[TransformerBlock],
        norm: Norm,
        tables: Sequence[torch.Tensor],
        groups: Sequence[int],
    ) -> None:
        self._native = library()
        plain = [PlainBlock.of(block) for block in blocks] if self._native else []
        self._blocks = [block for block in plain if block is not None]
        self._norm = norm if type(norm) is RMSNorm or type(norm) is LayerNorm else None
        self.is_known = bool(self._blocks) and len(self._blocks) == len(blocks) and bool(self._norm)
        """Whether all have a known form; else there is nothing to run."""
        self._places = tuple(zip(tables, groups, strict=True))
        self._made: tuple[Sequence[LayerCache], Program] | None = None

    def run(
        self,
        x_TC: torch.Tensor,
        batches: Sequence[RaggedBatch],
        caches: Sequence[LayerCache],
        rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """The states of `rows_S` (int64) after the last norm, [S, C]; `x_TC` is overwritten."""
        if self._made is None or self._made[0] is not caches:
            self._made = caches, self._make(caches)
        return self._made[1].run(x_TC, batches, rows_S, X)

    def _make(self, caches: Sequence[LayerCache]) -> Program:
        assert self._native is not None and self._norm is not None
        widths = [max(sizes) for sizes in zip(*map(PlainBlock.widths, self._blocks), strict=True)]
        program = Program(self._native, self._blocks[0].qkv.dtype, widths)
        layers = zip(self._blocks, self._places, caches, strict=True)
        for index, (block, (table, group), cache) in enumerate(layers):
            block.add_to(program, table, group, cache, is_first=index == 0)
        hidden = self._blocks[0].output.out_features
        program.pick(X, FIRST, hidden)
        program.pick(STREAM, SECOND, hidden)
        _add_norm(program, self._norm, FIRST, X, SECOND, is_of_picked=True)
        return program
