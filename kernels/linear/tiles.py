"""Which tile a GPU matmul is cut into: by shape and chip, as tiles of one family give equal bits."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

DESIGN_CHIP = (132, 163 * 1024)
"""Processors of an H200 and shared memory of an A100: what tensors without a GPU get."""
MIN_STAGES = 3


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of `rows` x `columns` outputs, summed over K in steps of `depth`.

    `stages` loads are in flight, fewer where a block's shared memory does not hold them;
    `warps` of 32 threads share the tile.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def stages_within(self, shared_bytes: int, itemsize: int) -> int:
        """How many stages of operands fit into `shared_bytes`."""
        return min(
            self.stages, shared_bytes // ((self.rows + self.columns) * self.depth * itemsize)
        )

    def loads(self, rows: int, columns: int, processors: int) -> int:
        """Operand elements, by step of K, that the busiest processor loads for such an output."""
        tiles = -(-rows // self.rows) * -(-columns // self.columns)
        return -(-tiles // processors) * (min(rows, self.rows) + self.columns)


def chip(device: torch.device) -> tuple[int, int]:
    """Number of processors, and bytes of shared memory that a thread block may ask for."""
    return _cuda_chip(device.index) if device.type == "cuda" else DESIGN_CHIP


@functools.cache
def _cuda_chip(index: int) -> tuple[int, int]:
    found = torch.cuda.get_device_properties(index)
    shared_bytes = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
    return found.multi_processor_count, shared_bytes


def choose_tile(
    tiles: Sequence[Tile], rows: int, out_features: int, weight_NK: torch.Tensor
) -> tuple[Tile, int]:
    """The tile with which the busiest processor loads least, and its number of stages.

    `tiles` go from large to small, and the first of equals is taken. Tiles twice as high as
    `rows` only multiply more zeros, and those without shared memory for MIN_STAGES wait for
    every load: both are passed over.
    """
    processors, shared_bytes = chip(weight_NK.device)
    lowest = min(tile.rows for tile in tiles)
    fitting = [
        tile
        for tile in tiles
        if (tile.rows < 2 * rows or tile.rows == lowest)
        and tile.stages_within(shared_bytes, weight_NK.itemsize) >= min(MIN_STAGES, tile.stages)
    ]
    best = min(fitting or tiles[-1:], key=lambda tile: tile.loads(rows, out_features, processors))
    return best, max(1, best.stages_within(shared_bytes, weight_NK.itemsize))
