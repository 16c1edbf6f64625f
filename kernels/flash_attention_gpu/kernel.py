"""Triton: attention over dense rows, and the device functions of attention over other keys.

Heads are computed in two parts, `main` and `rest`: a tile's width must be a power of two, and 192
columns as 128 + 64 multiply no zeros. For latent attention the parts are also what differs: values
are the main part of the keys, or the rest is read from another tensor.

A row's state is an online softmax over key blocks of fixed size, cut at multiples of that size
from key 0. A key that a row does not see adds zero and a block without any changes nothing, so
a row's bits depend on its query and the keys that it sees, not on the rows it shares a tile with.
"""

import torch
import triton
import triton.language as tl

from quire.kernels.flash_attention_gpu.tiles import (
    LOG2_E,
    attention_tile,
    head_parts,
    key_columns,
    padded,
)


@triton.jit
def find_tile(offsets, first, last, tile, ROWS_PER_TOKEN: tl.constexpr, BLOCK_M: tl.constexpr):
    """The context in [first, last) that owns row tile `tile`, and its first row there.

    Each token has ROWS_PER_TOKEN rows. Context i starts at tile rows_before_i // BLOCK_M +
    (i - first): an upper bound that needs no scan, so some tiles lie past their context's rows.
    """
    base = tl.load(offsets + first)
    low = first
    high = last
    while high - low > 1:
        middle = (low + high) // 2
        rows_before = (tl.load(offsets + middle) - base) * ROWS_PER_TOKEN
        is_left = rows_before // BLOCK_M + middle - first > tile
        high = tl.where(is_left, middle, high)
        low = tl.where(is_left, low, middle)
    rows_before = (tl.load(offsets + low) - base) * ROWS_PER_TOKEN
    return low, (tile - rows_before // BLOCK_M - low + first) * BLOCK_M


@triton.jit
def load_columns(base, row_offsets, is_row, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """A tile of rows at `base + row_offsets`; zero where masked, as stale memory may hold NaN."""
    column = tl.arange(0, PADDED)
    mask = is_row[:, None] & (column < WIDTH)[None, :]
    return tl.load(base + row_offsets[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def load_keys(
    source, keys, is_key, WIDTH: tl.constexpr, PADDED: tl.constexpr, PAGE_SIZE: tl.constexpr
):
    """Rows of some keys from `source`: (tensor, pages, page stride, row stride).

    With PAGE_SIZE 0 the tensor has the keys of this context in order, and no pages.
    """
    tensor, pages, page_stride, row_stride = source
    if PAGE_SIZE > 0:
        page = tl.load(pages + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
        offsets = page * page_stride + (keys % PAGE_SIZE) * row_stride
    else:
        offsets = keys.to(tl.int64) * row_stride
    return load_columns(tensor, offsets, is_key, WIDTH, PADDED)


@triton.jit
def attend(
    q_main,
    q_rest,
    lowest,
    highest,
    span,
    sources,
    score_scale,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    REST_PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The softmax state (max, sum, acc) of rows over the keys from `span[0]` up to `span[1]`.

    Row r sees the keys from `lowest[r]` to `highest[r]`. `sources` are those of the main part, the
    rest and the values (see `load_keys`); with VALUE 0 the values are the main part. REST 0 means
    one part only. `score_scale` includes log2(e).
    """
    rows: tl.constexpr = q_main.shape[0]
    main, rest, values = sources
    first, end = span
    row_max = tl.full([rows], float("-inf"), tl.float32)
    row_sum = tl.zeros([rows], tl.float32)
    acc = tl.zeros([rows, VALUE_PADDED], tl.float32)
    for block in range(first // BLOCK_N * BLOCK_N, end, BLOCK_N):
        keys = block + tl.arange(0, BLOCK_N)
        is_key = (keys >= first) & (keys < end)
        k_main = load_keys(main, keys, is_key, MAIN, q_main.shape[1], PAGE_SIZE)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="tf32x3")
        if REST > 0:
            k_rest = load_keys(rest, keys, is_key, REST, q_rest.shape[1], REST_PAGE_SIZE)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="tf32x3")
        visible = (keys[None, :] >= lowest[:, None]) & (keys[None, :] <= highest[:, None])
        scores = tl.where(visible & is_key[None, :], scores * score_scale, float("-inf"))
        top = tl.maximum(row_max, tl.max(scores, 1))
        safe = tl.where(top == float("-inf"), 0.0, top)
        weights = tl.exp2(scores - safe[:, None])
        decay = tl.exp2(row_max - safe)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        if VALUE > 0:
            v_tile = load_keys(values, keys, is_key, VALUE, VALUE_PADDED, PAGE_SIZE)
        else:
            v_tile = k_main
        weights = weights.to(v_tile.dtype)
        acc = tl.dot(weights, v_tile, acc * decay[:, None], input_precision="tf32x3")
        row_max = top
    return row_max, row_sum, acc


@triton.jit
def normalized(state):
    """Output rows of finished states; a row that saw no key is zero."""
    _, row_sum, acc = state
    return acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]


@triton.jit(do_not_specialize=["length"])
def dense_attention_kernel(
    q,
    k,
    v,
    out,
    valid_length,
    length,
    num_kv_heads,
    score_scale,
    GROUP: tl.constexpr,
    MAIN: tl.constexpr,
    MAIN_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (row tiles, key heads, batch). Rows of a tile are tokens x the heads of one key head."""
    HEAD_DIM: tl.constexpr = MAIN + REST
    # Late tiles have the most keys: started first, they leave no tail.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    kv_head = tl.program_id(1)
    entry = tl.program_id(2).to(tl.int64)
    valid = length
    if HAS_LENGTHS:
        valid = tl.minimum(tl.load(valid_length + entry).to(tl.int32), length)
    row = first_row + tl.arange(0, BLOCK_M)
    token = row // GROUP
    is_row = token < length
    is_valid = token < valid
    head = kv_head * GROUP + row % GROUP
    row_offsets = (token.to(tl.int64) * (num_kv_heads * GROUP) + head) * HEAD_DIM
    base = entry * length * num_kv_heads * HEAD_DIM
    q_base = q + base * GROUP
    q_main = load_columns(q_base, row_offsets, is_valid, MAIN, MAIN_PADDED)
    q_rest = q_main
    if REST > 0:
        q_rest = load_columns(q_base + MAIN, row_offsets, is_valid, REST, REST_PADDED)

    # A row past the valid length sees no key, which makes it zero.
    highest = tl.where(is_valid, token if IS_CAUSAL else valid - 1, -1)
    lowest = tl.zeros([BLOCK_M], tl.int32)
    first_token = first_row // GROUP
    last_token = tl.minimum((first_row + BLOCK_M - 1) // GROUP, valid - 1)
    first = 0
    end = tl.where(first_token < valid, valid, 0)
    if WINDOW > 0:
        lowest = token - WINDOW + 1
        first = tl.maximum(first_token - WINDOW + 1, 0)
        highest = tl.minimum(highest, token + WINDOW - 1)
        end = tl.minimum(end, last_token + WINDOW)
    if IS_CAUSAL:
        end = tl.minimum(end, last_token + 1)
    row_stride = num_kv_heads * HEAD_DIM
    head_base = base + kv_head * HEAD_DIM
    sources = (
        (k + head_base, valid_length, 0, row_stride),
        (k + head_base + MAIN, valid_length, 0, row_stride),
        (v + head_base, valid_length, 0, row_stride),
    )
    state = attend(
        q_main, q_rest, lowest, highest, (first, end), sources, score_scale,
        MAIN, REST, HEAD_DIM, VALUE_PADDED, 0, 0, BLOCK_N,
    )  # fmt: skip
    column = tl.arange(0, VALUE_PADDED)
    tl.store(
        out + base * GROUP + row_offsets[:, None] + column[None, :],
        normalized(state).to(out.dtype.element_ty),
        mask=is_row[:, None] & (column < HEAD_DIM)[None, :],
    )


def flash_attention_gpu_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: str = "causal",
    scale: float,
    local_window_size: int = -1,
    valid_length: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flash_attention_gpu`."""
    entries, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    out = torch.empty_like(q)
    head = head_parts(head_dim)
    tile = attention_tile(key_columns(head) + padded(head_dim), q.dtype)
    if out.numel():
        grid = (triton.cdiv(length * (heads // kv_heads), tile["BLOCK_M"]), kv_heads, entries)
        dense_attention_kernel[grid](
            q,
            k,
            v,
            out,
            q if valid_length is None else valid_length,
            length,
            kv_heads,
            scale * LOG2_E,
            GROUP=heads // kv_heads,
            VALUE_PADDED=padded(head_dim),
            IS_CAUSAL=mask == "causal",
            WINDOW=max(local_window_size, 0),
            HAS_LENGTHS=valid_length is not None,
            **head,
            **tile,
        )
    return out
