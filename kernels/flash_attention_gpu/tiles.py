"""Sizes of the tiles that `attend` works on: they follow from the model alone."""

import torch
import triton

LOG2_E = 1.4426950408889634
MIN_COLUMNS = 16
"""The narrowest tile that a matrix instruction takes."""


def padded(columns: int) -> int:
    """Columns of the tile that holds `columns`."""
    power: int = triton.next_power_of_2(columns)
    return max(MIN_COLUMNS, power)


def head_parts(head_dim: int) -> dict[str, int]:
    """How a head's columns are computed: the greatest power of two, then the rest (or 0)."""
    main = 1 << (head_dim.bit_length() - 1)
    return parts(main, head_dim - main)


def parts(main: int, rest: int) -> dict[str, int]:
    """Constants of a head in two parts, each padded to a tile's width."""
    return {
        "MAIN": main,
        "MAIN_PADDED": padded(main),
        "REST": rest,
        "REST_PADDED": padded(rest),
    }


def key_columns(head: dict[str, int]) -> int:
    """Columns of a key's tiles."""
    return head["MAIN_PADDED"] + (head["REST_PADDED"] if head["REST"] else 0)


def attention_tile(columns: int, dtype: torch.dtype) -> dict[str, int]:
    """Rows and keys of a tile, warps and stages, for keys and values of `columns` in all.

    Shared memory holds some stages of keys and values. A float32 product splits its operands into
    parts, which takes registers.
    """
    key_bytes = columns * dtype.itemsize
    rows, keys, stages = 64, 64 if key_bytes <= 640 else 32, 3
    if dtype.itemsize == 4:
        rows, keys, stages = (64, 32, 2) if key_bytes <= 512 else (32, 16, 2)
    return {
        "BLOCK_M": rows,
        "BLOCK_N": keys,
        "num_warps": 4 if key_bytes <= 256 else 8,
        "num_stages": stages,
    }
