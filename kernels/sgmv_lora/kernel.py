"""Triton: LoRA of many sequences: shrink x to the rank, then expand it onto the result."""

import torch
import triton
import triton.language as tl

from quire.kernels.grouped_matmul_ragged.kernel import segment_of_slot

BLOCK_M = 16
BLOCK_N = 64
SPLIT_K = 1024
"""Inputs that one program sums: few sequences would keep few processors busy otherwise. The
expansion adds the parts up in order, so the split is fixed and a row exact."""


@triton.jit(do_not_specialize=["tokens", "sequences"])
def shrink_kernel(
    x,
    lora_a,
    lora_ids,
    lora_ranks,
    offsets,
    low,
    tokens,
    sequences,
    adapters,
    in_features,
    max_rank,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """low[split, t, part] = A[a, part] x[t] of the split's inputs. Grid (slots, parts, splits)."""
    slot = tl.program_id(0)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    split = tl.program_id(2)
    sequence = segment_of_slot(offsets, sequences, slot, BLOCK_M)
    adapter = tl.load(lora_ids + sequence)
    start = tl.load(offsets + sequence)
    end = tl.load(offsets + sequence + 1)
    first_row = start + (slot - start // BLOCK_M - sequence) * BLOCK_M
    if (adapter < 0) | (adapter >= adapters) | (first_row >= end):
        return
    row = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
    is_row = row < end
    rank = tl.arange(0, BLOCK_R)
    is_rank = rank < tl.minimum(tl.load(lora_ranks + adapter), max_rank)
    step = split * SPLIT_K + tl.arange(0, BLOCK_K)
    matrix = lora_a + (adapter.to(tl.int64) * parts + part) * max_rank * in_features
    x_tile = x + row[:, None] * in_features + step[None, :]
    a_tile = matrix + rank[None, :] * in_features + step[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k in range(0, tl.minimum(SPLIT_K, in_features - split * SPLIT_K), BLOCK_K):
        is_inside = step < in_features - k
        left = tl.load(x_tile + k, mask=is_row[:, None] & is_inside[None, :], other=0.0)
        right = tl.load(a_tile + k, mask=is_rank[None, :] & is_inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    target = low + ((split.to(tl.int64) * tokens + row) * parts + part)[:, None] * BLOCK_R
    tl.store(target + rank[None, :], total, mask=is_row[:, None])


@triton.jit(do_not_specialize=["tokens", "sequences"])
def expand_kernel(
    low,
    lora_b,
    bias,
    scaling,
    lora_ids,
    lora_ranks,
    offsets,
    y,
    tokens,
    sequences,
    adapters,
    max_rank,
    parts,
    q_features,
    kv_features,
    splits,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALING: tl.constexpr,
):
    """y += scaling * (B low + bias). Grid (slots, column tiles of q, then of k, then of v).

    A tile of columns lies in one of the three, whose `low` it needs; `parts` is 3 or 1.
    """
    slot = tl.program_id(0)
    tile = tl.program_id(1)
    sequence = segment_of_slot(offsets, sequences, slot, BLOCK_M)
    adapter = tl.load(lora_ids + sequence)
    start = tl.load(offsets + sequence)
    end = tl.load(offsets + sequence + 1)
    first_row = start + (slot - start // BLOCK_M - sequence) * BLOCK_M
    if (adapter < 0) | (adapter >= adapters) | (first_row >= end):
        return
    q_tiles = tl.cdiv(q_features, BLOCK_N)
    kv_tiles = tl.maximum(tl.cdiv(kv_features, BLOCK_N), 1)
    part = tl.where(tile < q_tiles, 0, 1 + (tile - q_tiles) // kv_tiles)
    first_column = tl.where(part == 0, 0, q_features + (part - 1) * kv_features)
    tile_of_part = tl.where(part == 0, tile, (tile - q_tiles) % kv_tiles)
    column = first_column + tile_of_part * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < q_features + part * kv_features
    features = q_features + 2 * kv_features

    row = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
    is_row = row < end
    rank = tl.arange(0, BLOCK_R)
    is_rank = rank < tl.minimum(tl.load(lora_ranks + adapter), max_rank)
    source = low + (row * parts + part % parts)[:, None] * BLOCK_R + rank[None, :]
    shrunk = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for _ in range(splits):
        shrunk += tl.load(source, mask=is_row[:, None] & is_rank[None, :], other=0.0)
        source += tokens.to(tl.int64) * parts * BLOCK_R
    b_row = adapter.to(tl.int64) * features + column
    b_tile = lora_b + b_row[None, :] * max_rank + rank[:, None]
    right = tl.load(b_tile, mask=is_column[None, :] & is_rank[:, None], other=0.0)
    delta = tl.dot(shrunk.to(right.dtype), right, input_precision="ieee")
    if HAS_BIAS:
        delta += tl.load(bias + b_row, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if HAS_SCALING:
        delta *= tl.load(scaling + adapter)
    target = y + row[:, None] * features + column[None, :]
    mask = is_row[:, None] & is_column[None, :]
    total = tl.load(target, mask=mask, other=0.0).to(tl.float32) + delta
    tl.store(target, total.to(y.dtype.element_ty), mask=mask)


def sgmv_lora_kernel_triton(
    input: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    lora_ids: torch.Tensor,
    lora_ranks: torch.Tensor,
    input_row_offsets: torch.Tensor,
    y: torch.Tensor,
    *,
    scaling: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """As `sgmv_lora_kernel`."""
    sgmv_qkv_lora_kernel_triton(
        input,
        lora_a[:, None],
        lora_b,
        lora_ids,
        lora_ranks,
        input_row_offsets,
        y,
        y.shape[1],
        scaling=scaling,
        bias=bias,
    )


def sgmv_qkv_lora_kernel_triton(
    input: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    lora_ids: torch.Tensor,
    lora_ranks: torch.Tensor,
    input_row_offsets: torch.Tensor,
    qkv: torch.Tensor,
    q_features: int,
    *,
    scaling: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """As `sgmv_qkv_lora_kernel`."""
    if not input.shape[0] or not lora_ids.shape[0]:
        return
    sequences = lora_ids, lora_ranks, input_row_offsets
    low = _shrink(input, lora_a, sequences)
    (splits, tokens, parts, block_r), (adapters, _, max_rank) = low.shape, lora_b.shape
    kv_features = (qkv.shape[1] - q_features) // 2
    tiles = triton.cdiv(q_features, BLOCK_N) + 2 * triton.cdiv(kv_features, BLOCK_N)
    expand_kernel[(_slots(tokens, lora_ids), tiles)](
        low,
        lora_b,
        lora_b if bias is None else bias,
        low if scaling is None else scaling,
        *sequences,
        qkv,
        tokens,
        lora_ids.shape[0],
        adapters,
        max_rank,
        parts,
        q_features,
        kv_features,
        splits,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_R=block_r,
        HAS_BIAS=bias is not None,
        HAS_SCALING=scaling is not None,
        num_warps=4,
    )


def _shrink(
    input: torch.Tensor,
    lora_a: torch.Tensor,
    sequences: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """float32 [splits, T, parts, BLOCK_R], to be added up over splits."""
    (tokens, in_features), (adapters, parts, max_rank, _) = input.shape, lora_a.shape
    splits = triton.cdiv(in_features, SPLIT_K)
    block_r = max(triton.next_power_of_2(max_rank), 16)
    is_wide = block_r > 64 or input.dtype == torch.float32
    low = input.new_empty(splits, tokens, parts, block_r, dtype=torch.float32)
    shrink_kernel[(_slots(tokens, sequences[0]), parts, splits)](
        input,
        lora_a,
        *sequences,
        low,
        tokens,
        sequences[0].shape[0],
        adapters,
        in_features,
        max_rank,
        BLOCK_M=BLOCK_M,
        BLOCK_R=block_r,
        BLOCK_K=32 if is_wide else 128,
        SPLIT_K=SPLIT_K,
        num_warps=4,
        num_stages=3,
    )
    return low


def _slots(tokens: int, lora_ids: torch.Tensor) -> int:
    """See `segment_of_slot`."""
    return tokens // BLOCK_M + lora_ids.shape[0]
