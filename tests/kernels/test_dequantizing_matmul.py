"""Packed matmuls: spans of K give the same bits in one program and in many."""

from collections.abc import Callable

import pytest
import torch

from quire.kernels.dequantizing_matmul import kernel
from quire.kernels.gguf.cases import random_blocks
from quire.kernels.gguf.kernel import BLOCK_K, matmul_gguf_triton, packed_gguf

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_spans_in_one_program_and_in_many_give_the_same_bits(
    dtype: torch.dtype, same_bits: SameBits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three spans of 5, 5 and 3 tiles; the number of rows chooses between the two."""
    generator = torch.Generator().manual_seed(1)
    weight = random_blocks(7, 13 * BLOCK_K, "Q8_0", generator)
    x = torch.randn(5, 13 * BLOCK_K, generator=generator).to(dtype)
    bias = torch.randn(7, generator=generator).to(dtype)
    assert kernel.span_of(packed_gguf(weight, "Q8_0"), 32) == 5 * BLOCK_K
    split = matmul_gguf_triton(x, weight, "Q8_0", bias)
    monkeypatch.setattr(kernel, "SPLIT_BELOW", 0)

    whole = matmul_gguf_triton(x, weight, "Q8_0", bias)

    assert same_bits(split, whole)


def test_spans_follow_from_the_width() -> None:
    """Enough programs to fill a chip where the weight has them, whole tiles, none too short."""
    for out_features, in_features, span in (
        (4096, 4096, 512),
        (14336, 4096, 1024),
        (1024, 4096, 256),
        (128256, 4096, 4096),
        (4096, 64, 64),
    ):
        weight = torch.empty(out_features, in_features // 32 * 34, device="meta")
        block_n = kernel.tile_shape(torch.bfloat16, out_features)[1]
        assert kernel.span_of(packed_gguf(weight, "Q8_0"), block_n) == span
