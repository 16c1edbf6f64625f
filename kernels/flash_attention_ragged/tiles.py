"""Tiles and grids of the Triton kernels: what the model and the chip decide."""

import functools

import torch
import triton
from triton.language.target_info import current_target

from quire.kernels.flash_attention_ragged.splits import SPLIT_KEYS

PROGRAMS_PER_SM = 4
INTERPRETER_PROGRAMS = 3
"""Few enough that a program of a small test does several items."""


@functools.cache
def decode_programs(device: torch.device) -> int:
    """Programs of the decode kernel: as many as keep the chip busy, or a few to interpret."""
    if device.type != "cuda":
        return INTERPRETER_PROGRAMS
    return PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count


def _capability() -> int:
    """Compute capability * 10 that kernels are compiled for; in the interpreter that of Hopper."""
    target = current_target()
    return 90 if target is None else int(target.arch)


def tile_sizes(
    heads: int, kv_heads: int, head_dim: int, q_dtype: torch.dtype
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Constants of both kernels, then the tiles of the prefill and of the decode kernel.

    They follow from model and chip alone, so that a row's bits do.
    """
    group_padded = triton.next_power_of_2(heads // kv_heads)
    padded = max(16, triton.next_power_of_2(head_dim))
    size = q_dtype.itemsize
    shared = {
        "GROUP": heads // kv_heads,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PADDED": padded,
        # A float32 dot needs registers for the parts it splits its operands into.
        "BLOCK_N": min(64 if size == 2 else 32, 16384 // (padded * size)),
        "SPLIT_KEYS": SPLIT_KEYS,
    }
    rows, warps, stages = 64, 8, 2
    if size == 4 and padded > 64:
        rows, warps, stages = (32, 8, 1) if padded == 128 else (16, 4, 1)
    rows = max(rows, group_padded)
    capability = _capability()
    if size == 2 and capability >= 100:
        stages = 3 if padded <= 128 else 1  # What does not spill there.
    prefill = {"GROUP_PADDED": group_padded}
    prefill |= {"BLOCK_M": rows, "num_warps": warps, "num_stages": stages}
    # A page id is loaded before its keys: five stages keep keys of two blocks under way.
    decode = {"BLOCK_M": rows, "num_warps": warps, "num_stages": 5 if size == 2 else stages}
    # Up to these widths Triton gives a warp whole rows of every product, and so gives a row the
    # same order of operations in 128 rows and 8 warps as in 64 rows and 4 warps.
    widest = {8: 64, 9: 128}.get(capability // 10, 0)
    if size == 2 and rows == 64 and padded <= widest:
        prefill |= {"BLOCK_M": 128, "num_stages": 5}
        decode["num_warps"] = 4
    return shared, prefill, decode
