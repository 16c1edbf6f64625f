"""Ops that one call of the compiled library runs in turn.

Between two ops called from Python some 10 us go by, in a decode step of 30 layers 2.4 ms, and
threads that wait for the next op may fall asleep. A program has the ops as the library takes them,
and a run adds what is of the step: rows, tables of pages, memory.
"""

import struct
from collections.abc import Sequence

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.flash_attention_ragged.cpu_native import attention_call
from quire.kernels.linear.cpu_native import CompiledLinear
from quire.kernels.native import Library
from quire.kernels.native.row_ops import (
    BAD_BATCH,
    activation_call,
    norm_call,
    raise_for,
    rope_call,
)
from quire.kernels.ragged_batch import RaggedBatch

OP = struct.Struct("@6q256s")
PAGE_GROUP = struct.Struct("@2Qq")
BATCH = struct.Struct("@4Q4q")
PICK = struct.Struct("@q")
"""The fields of Op, PageGroup, ProgramBatch and PickCall (program.h)."""
NORM, LINEAR, ROPE, ACTIVATION, ATTENTION, PICK_ROWS = range(6)
"""OpKind of program.h."""
CPU = torch.device("cpu")
ALIGNMENT = 64


class Program:
    """A list of ops on buffers, each with a row per token.

    Buffer 0 is the caller's, [T, `widths[0]`]; the others are made for a run. Ops are added in the
    order in which they run, and say where they read and write. Their tensors are such as an op of
    that name takes: what it would check of them is not checked here but for the width of rows.

    Raises (methods that add an op):
        ValueError: its rows have no room in the buffers.

    Args:
        native: the compiled library.
        dtype: of all buffers, bfloat16 or float32.
        widths: elements of each buffer's rows, at least.
    """

    def __init__(self, native: Library, dtype: torch.dtype, widths: Sequence[int]) -> None:
        self._native = native
        self._dtype = dtype
        self._widths = tuple(widths)
        sizes = [-(-width * dtype.itemsize // ALIGNMENT) * ALIGNMENT for width in widths[1:]]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._row_bytes = sum(sizes)
        self._pointers = struct.Struct(f"@{len(widths)}Q")
        self._ops = b""
        self._kept: list[object] = []

    def norm(
        self,
        source: int,
        to: int,
        kind: int,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor | None,
        epsilon: float,
        weight_offset: float = 0.0,
        *,
        residual: int | None = None,
        is_of_picked: bool = False,
    ) -> None:
        """As `norm_native`; the sum with the buffer `residual` takes its place.

        `is_of_picked`: of as many rows as the run picks.
        """
        chosen = self._native.instruction_set
        call = norm_call(kind, weight_C, bias_C, epsilon, weight_offset, chosen)
        columns = weight_C.shape[0]
        self._check_width(columns, source, to, *(() if residual is None else (residual,)))
        kept = (weight_C, bias_C)
        self._add(NORM, source, to, call, *kept, residual=residual, is_of_picked=is_of_picked)

    def pick(self, source: int, to: int, columns: int) -> None:
        """Copy the rows that the run picks, of `columns` elements, in their order."""
        self._check_width(columns, source, to)
        self._add(PICK_ROWS, source, to, PICK.pack(columns * self._dtype.itemsize))

    def linear(self, source: int, to: int, layer: CompiledLinear) -> None:
        self._check_width(layer.in_features, source)
        self._check_width(layer.out_features, to)
        self._add(LINEAR, source, to, layer.weights, layer)

    def rope(
        self,
        source: int,
        to: int,
        cos_sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        *,
        num_heads: int,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        epsilon: float = 1e-6,
        interleaved: bool = False,
        norm_weight_offset: float = 0.0,
        multiply_before_cast: bool = False,
        group: int = 0,
    ) -> None:
        """As `fused_qk_ragged_rope`, with the slots of page group `group`."""
        _, kv_heads, _, head_dim = k_cache.shape
        columns = (num_heads + 2 * kv_heads) * head_dim
        self._check_width(columns, source)
        self._check_width(num_heads * head_dim, to)
        call = rope_call(
            cos_sin,
            k_cache,
            v_cache,
            self._native.instruction_set,
            dtype=self._dtype,
            row_stride=columns,
            num_heads=num_heads,
            q_norm=q_norm,
            k_norm=k_norm,
            epsilon=epsilon,
            interleaved=interleaved,
            norm_weight_offset=norm_weight_offset,
            multiply_before_cast=multiply_before_cast,
        )
        kept = (cos_sin, k_cache, v_cache, q_norm, k_norm)
        self._add(ROPE, source, to, call, *kept, group=group)

    def attention(
        self,
        source: int,
        to: int,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        *,
        heads: int,
        scale: float,
        sliding_window: int | None = None,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
        group: int = 0,
    ) -> None:
        """As `flash_attention_ragged`, with the page table of page group `group`."""
        self._check_width(heads * k_cache.shape[3], source, to)
        call = attention_call(
            k_cache,
            v_cache,
            self._native.instruction_set,
            heads=heads,
            dtype=self._dtype,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
            sinks=sinks,
        )
        self._add(ATTENTION, source, to, call, k_cache, v_cache, sinks, group=group)

    def activation(self, source: int, to: int, kind: str, columns: int, *, is_gated: bool) -> None:
        """As `activation` or `gated_activation`, with `columns` results in a row."""
        self._check_width(2 * columns if is_gated else columns, source)
        self._check_width(columns, to)
        chosen = self._native.instruction_set
        call = activation_call(kind, columns, self._dtype, chosen, is_gated=is_gated)
        self._add(ACTIVATION, source, to, call)

    def _add(
        self,
        op: int,
        source: int,
        to: int,
        call: bytes,
        *kept: object,
        residual: int | None = None,
        group: int = 0,
        is_of_picked: bool = False,
    ) -> None:
        place = -1 if residual is None else residual
        self._ops += OP.pack(op, source, to, place, group, is_of_picked, call)
        self._kept += kept

    def _check_width(self, columns: int, *buffers: int) -> None:
        for buffer in buffers:
            if columns > self._widths[buffer]:
                raise ValueError(
                    f"an op has rows of {columns}, buffer {buffer} of {self._widths[buffer]}"
                )

    def run(
        self,
        first_TC: torch.Tensor,
        batches: Sequence[RaggedBatch],
        picked_S: torch.Tensor,
        result: int,
    ) -> torch.Tensor:
        """Run the ops; returns the picked rows of buffer `result`, as wide as those of buffer 0.

        Args:
            first_TC: buffer 0, contiguous; changed where ops write to it.
            batches: of each page group; they differ in `lookup_table` and `slots` alone.
            picked_S: int64 [S], rows of the batch, in any order.

        Raises:
            ValueError: `first_TC` is none of the batch, or the batch has positions, slots, pages or
                picked rows that tables and caches do not have.
            MemoryError: no room for what a kernel works with.
        """
        batch = batches[0]
        check_tensor("first_TC", first_TC, ("T", self._widths[0]), self._dtype, device=CPU)
        check_tensor("picked_S", picked_S, ("S",), torch.int64, device=CPU)
        batch.check_matches("first_TC", first_TC)
        tokens, num_picked = first_TC.shape[0], picked_S.shape[0]
        rows = max(tokens, num_picked)
        memory = torch.empty(rows * self._row_bytes, dtype=torch.uint8)
        start = memory.data_ptr()
        groups = b"".join(
            PAGE_GROUP.pack(
                group.lookup_table.data_ptr(), group.slots.data_ptr(), group.lookup_table.shape[1]
            )
            for group in batches
        )
        status = self._native.program(
            self._ops,
            len(self._ops) // OP.size,
            BATCH.pack(
                batch.input_row_offsets.data_ptr(),
                batch.cache_lengths.data_ptr(),
                batch.positions.data_ptr(),
                picked_S.data_ptr(),
                *(tokens, len(batch.query_lengths), num_picked, torch.get_num_threads()),
            ),
            self._pointers.pack(
                first_TC.data_ptr(), *(start + place * rows for place in self._starts)
            ),
            groups,
        )
        if status == BAD_BATCH:
            raise ValueError(
                "batch must have its positions, slots, pages and picked rows in tables and caches"
            )
        if status:
            raise_for(status)
        place = self._starts[result - 1] * rows
        size = num_picked * self._widths[0] * self._dtype.itemsize
        picked = memory[place : place + size].view(self._dtype).view(num_picked, self._widths[0])
        # A view would keep all buffers for as long as its caller keeps it.
        return picked.clone()
