"""Which numbers of rows a CPU GEMM may be run with so that a row's bits stay the same.

A GEMM library chooses blocks, and with them the order of the sum over K, by the number of rows
M, by N, K, dtype and threads. Within one call every row is summed alike, so it is enough to know
which M share one order. That is probed: the inputs make every exact result zero by cancellation
of terms of very different size, so each output is rounding error alone and another order shows in
nearly every element. (With ordinary data bfloat16 outputs hide it in all but one in hundreds.)
The order of a sum does not depend on the data, so what holds for the probe holds for all inputs.

Measured 2026-11-20, torch 2.13, oneDNN prepacked weights, Sapphire Rapids, M = 1..33 and 16 more
up to 512, 15 shapes (K, N) from (64, 128) to (1024, 151936), 1 and 2 threads, with and without
bias (the bias never mattered):
- float32: all M alike, but M = 1 differs where K >= 1536 and N <= 1024 (padded to 2).
- bfloat16, K <= 512: all M alike. K > 512: M <= 32 alike, most larger M differ (the sum over K
  is cut into blocks), with islands (K 1024, N 6144: 384..512; K 704, N 256: 256..512).
- weights not prepacked, float32: M = 1, M = 2..12 and the rest differ.
"""

import torch

from quire.kernels.linear.cpu import prepacked

BASE_ROWS = 32
"""Every other count is held against this one, the largest that is alike with a single row."""

LADDER = (1, 2, 4, 8, 16, 24, BASE_ROWS, 64, 128, 256, 512)
MAX_PROBE_PRODUCTS = 2**30
"""Larger GEMMs are not probed above BASE_ROWS: a vocabulary head sees few rows a step."""

PROBE_WEIGHT_ROWS = 256


class TilePlans:
    """Probe results by shape, dtype and number of threads; share one among a model's layers."""

    def __init__(self) -> None:
        self._row_counts: dict[tuple[int, int, torch.dtype, bool, int], tuple[int, ...]] = {}

    def row_counts(self, weight_NK: torch.Tensor, has_bias: bool) -> tuple[int, ...]:
        """The row counts, ascending, whose rows have the bits of a row among BASE_ROWS."""
        out_features, in_features = weight_NK.shape
        threads = torch.get_num_threads()
        key = (out_features, in_features, weight_NK.dtype, has_bias, threads)
        if key not in self._row_counts:
            self._row_counts[key] = probe(out_features, in_features, weight_NK.dtype, has_bias)
        return self._row_counts[key]


def probe(
    out_features: int, in_features: int, dtype: torch.dtype, has_bias: bool
) -> tuple[int, ...]:
    """Run every count of the ladder on cancelling inputs and keep those alike with the base.

    Raises:
        RuntimeError: rows of one base tile differ by their place; no count would be exact.
    """
    products = out_features * in_features
    ladder = [rows for rows in LADDER if rows <= BASE_ROWS or rows * products <= MAX_PROBE_PRODUCTS]
    x_MK, weight_NK = cancelling_inputs(ladder[-1], out_features, in_features, dtype)
    bias_N = torch.zeros(out_features, dtype=dtype) if has_bias else None
    apply = prepacked(weight_NK, bias_N)
    base = torch.cat([apply(tile) for tile in padded_tiles(x_MK)])[: len(x_MK)]
    turned = apply(x_MK[:BASE_ROWS].roll(1, 0)).roll(-1, 0)
    if not torch.equal(turned, base[:BASE_ROWS]):
        raise RuntimeError(
            f"a GEMM of {BASE_ROWS} rows, K {in_features}, N {out_features}, {dtype} sums rows "
            "differently by their place; run with exact off"
        )
    return tuple(
        rows
        for rows in ladder
        if rows == BASE_ROWS
        # The last rows of the sample, so that a row's place in its tile changes too.
        or torch.equal(apply(x_MK[-rows:].contiguous()), base[-rows:])
    )


def padded_tiles(x_MK: torch.Tensor) -> tuple[torch.Tensor, ...]:
    missing = -len(x_MK) % BASE_ROWS
    return torch.split(torch.nn.functional.pad(x_MK, (0, 0, 0, missing)), BASE_ROWS)


def cancelling_inputs(
    rows: int, out_features: int, in_features: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] and weight [N, K] with x W^T = 0 exactly, in any order but that of rounding.

    Columns are paired at random: paired x are equal, paired weights are opposite.
    """
    generator = torch.Generator().manual_seed(0)
    half = in_features // 2
    order = torch.randperm(2 * half, generator=generator)

    def wide(count: int) -> torch.Tensor:
        exponents = torch.randint(-6, 7, (count, half), generator=generator)
        return torch.randn(count, half, generator=generator) * torch.exp2(exponents.float())

    x_MK = torch.zeros(rows, in_features)
    x_MK[:, order[:half]] = x_MK[:, order[half:]] = wide(rows)
    few = torch.zeros(min(PROBE_WEIGHT_ROWS, out_features), in_features)
    few[:, order[:half]] = wide(len(few))
    few[:, order[half:]] = -few[:, order[:half]]
    few = few.to(dtype)
    copies = -(-out_features // len(few))
    return x_MK.to(dtype), few.repeat(copies, 1)[:out_features]
