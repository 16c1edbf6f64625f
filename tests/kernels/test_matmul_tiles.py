"""Matmul kernels give a row the same bits in every tile, on a model of tensor cores.

Dots of Triton's interpreter sum in numpy's order, which depends on the tile's shape. A tensor
core adds a step of products to its accumulator at once and then rounds; a dot of float32 is one
multiply-add after the other. Kernels that reach an element's sum in another order of steps, or
promote it at other places, get other bits here as they would there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from quire.kernels.linear.kernel import (
    TILES_16_BIT,
    TILES_32_BIT,
    linear_in_tiles,
    linear_triton,
)
from quire.kernels.linear.tile_plan import cancelling_inputs
from quire.kernels.linear.tiles import DESIGN_CHIP, Tile, choose_tile
from quire.kernels.matmul_scaled_float8 import dynamic_scaled_matmul
from quire.kernels.matmul_scaled_float8.cases import Scaling, scaled_inputs
from quire.kernels.matmul_scaled_float8.kernel import (
    TILES,
    dynamic_scaled_matmul_triton,
    scaled_matmul_in_tiles,
)

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
FP8 = tl.float8e4nv
STEP = {tl.float32: 1, tl.bfloat16: 16, tl.float16: 16, FP8: 32}
"""Products of one instruction."""
LOST_BITS = np.uint32(0xFFFFFFFF << 9 & 0xFFFFFFFF)
"""Hopper's fp8 instructions keep about 14 of the 23 mantissa bits of a sum (DeepSeek-V3, 3.5.2)."""


def values(handle: TensorHandle) -> npt.NDArray[np.float64]:
    data = np.ascontiguousarray(handle.data)
    if handle.dtype.scalar == tl.bfloat16:
        data = (data.astype(np.uint32) << 16).view(np.float32)
    if handle.dtype.scalar == FP8:
        data = torch.from_numpy(data.view(np.uint8)).view(torch.float8_e4m3fn).double().numpy()
    return data.astype(np.float64)


def stepwise_dot(
    _: Any, a: TensorHandle, b: TensorHandle, addend: TensorHandle, __: Any, promote_at: int
) -> TensorHandle:
    left, right = values(a), values(b)
    depth = left.shape[1]
    is_fp8 = a.dtype.scalar == FP8
    promoted = is_fp8 and 0 < (promote_at or 0) <= depth
    total = np.zeros_like(addend.data) if promoted else addend.data
    step = STEP[a.dtype.scalar]
    for start in range(0, depth, step):
        products = np.zeros(total.shape)
        for k in range(start, min(start + step, depth)):
            products += left[:, k, None] * right[None, k]
        total = (total.astype(np.float64) + products).astype(np.float32)
        if is_fp8:
            total = (total.view(np.uint32) & LOST_BITS).view(np.float32)
    return TensorHandle(total + addend.data if promoted else total, tl.float32)


@pytest.fixture(autouse=True)
def tensor_cores(bfloat16_in_the_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", stepwise_dot)


@pytest.mark.parametrize(
    ("dtype", "tiles"),
    [
        (torch.bfloat16, TILES_16_BIT),
        (torch.float16, TILES_16_BIT),
        (torch.float32, TILES_32_BIT),
    ],
    ids=["bfloat16", "float16", "float32"],
)
def test_every_dense_tile_gives_a_row_the_same_bits(
    dtype: torch.dtype, tiles: tuple[Tile, ...], same_bits: SameBits
) -> None:
    """On inputs that cancel, where every output is rounding error, with a ragged end of K."""
    x, weight = cancelling_inputs(66, 40, 152, dtype)
    bias = torch.randn(40, generator=torch.Generator().manual_seed(1)).to(dtype) * 2.0**-20

    results = [linear_in_tiles(x, weight, bias, tile, 3) for tile in tiles]

    assert results[0].isfinite().all()
    for result in results:
        assert same_bits(result, results[0])
    backwards = linear_in_tiles(x.flip(1), weight.flip(1), bias, tiles[0], 3)
    assert (backwards != results[0]).float().mean() > 0.5


def test_a_decode_row_has_the_bits_of_a_prefill_row(
    monkeypatch: pytest.MonkeyPatch, same_bits: SameBits
) -> None:
    """Through the launcher, with so few processors that the number of rows changes the tile."""
    monkeypatch.setattr("quire.kernels.linear.tiles.DESIGN_CHIP", (2, DESIGN_CHIP[1]))
    x, weight = cancelling_inputs(130, 256, 96, torch.bfloat16)
    tiles = {rows: choose_tile(TILES_16_BIT, rows, 256, weight)[0] for rows in (1, 130)}
    assert tiles[1].rows < tiles[130].rows

    whole = linear_triton(x, weight)

    for row in (0, 77, 129):
        assert same_bits(linear_triton(x[row : row + 1], weight), whole[row : row + 1])


@pytest.mark.parametrize("scaling", ["one", "row", "block"])
def test_every_scaled_tile_gives_a_row_the_same_bits(scaling: Scaling, same_bits: SameBits) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b, a_scales, b_scales = scaled_inputs((66, 136, 300), (scaling, scaling), generator)
    bias = torch.randn(136, generator=generator)

    def product(tile: Tile, columns: torch.Tensor | None = None) -> torch.Tensor:
        out = torch.empty(66, 136)
        left, right = ((m if columns is None else m[:, columns]) for m in (a, b))
        scaled_matmul_in_tiles(out, (left, a_scales), (right, b_scales), bias, (tile, 3))
        return out

    results = [product(tile) for tile in TILES]

    for result in results:
        assert same_bits(result, results[0])
    if scaling != "block":
        backwards = product(TILES[0], torch.arange(300).flip(0))
        assert (backwards != results[0]).float().mean() > 0.5


def test_sums_of_fp8_are_promoted_before_they_lose_bits() -> None:
    """One large product, then steps that add 1: the 14 bits of a sum of 2^16 end at 4."""
    large, small = 256.0, 2.0**-5
    a = torch.full((1, 4096), small)
    b = torch.ones(1, 4096)
    a[0, 0] = b[0, 0] = large
    one = torch.ones(1)
    out = torch.empty(1, 1)

    left, right = ((m.to(torch.float8_e4m3fn), one) for m in (a, b))
    scaled_matmul_in_tiles(out, left, right, None, (TILES[-1], 3))

    assert out.item() == large * large + (4096 - 128) * small


@pytest.mark.parametrize("matmul", [dynamic_scaled_matmul, dynamic_scaled_matmul_triton])
def test_nan_of_fp8_stays_in_its_row(matmul: Callable[..., torch.Tensor]) -> None:
    """Here, as the interpreter's own dot takes its code for a number."""
    generator = torch.Generator().manual_seed(3)
    operands = scaled_inputs((3, 20, 40), ("row", "row"), generator)
    operands[0].view(torch.uint8)[1, 5] = 0x7F

    y = matmul(*operands)

    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()
