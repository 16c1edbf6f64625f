"""Packed matmuls: spans of K in one program and in many, weights of more than 2^31 bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from quire.kernels.dequantizing_matmul import kernel
from quire.kernels.fp4.kernel import packed_mxfp4, packed_nvfp4
from quire.kernels.gguf.cases import random_blocks
from quire.kernels.gguf.encodings import ENCODINGS
from quire.kernels.gguf.kernel import BLOCK_K, matmul_gguf_triton, packed_gguf
from quire.kernels.gptq_awq.kernel import packed_awq, packed_gptq

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


def far(file: Path, rows: int, columns: int, dtype: type = np.uint8) -> torch.Tensor:
    """Zeros of a sparse file: they take memory only where they are touched."""
    return torch.from_numpy(np.memmap(file, dtype, "w+", shape=(rows, columns)))


@triton.jit
def _one_tile(
    operands,
    out,
    column,
    k,
    in_features,
    out_features,
    DECODE: tl.constexpr,
    CONSTANTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile = DECODE(operands, column, k, in_features, out_features, CONSTANTS, BLOCK_K, BLOCK_N)
    place = tl.arange(0, BLOCK_K)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(out + place, tile)


def last_tile(packed: kernel.Packed) -> torch.Tensor:
    """The 16 last columns of K's last BLOCK_K, [BLOCK_K, 16]."""
    out = torch.empty(packed.block_k, 16)
    _one_tile[(1,)](
        packed.operands,
        out,
        packed.out_features - 16,
        packed.in_features - packed.block_k,
        packed.in_features,
        packed.out_features,
        DECODE=packed.decode,
        CONSTANTS=packed.constants,
        BLOCK_K=packed.block_k,
        BLOCK_N=16,
    )
    return out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gguf_blocks_far_into_the_weight_are_read(encoding: str, tmp_path: Path) -> None:
    layout = ENCODINGS[encoding]
    tail = 256 // layout.elements_per_block * layout.block_size
    row_bytes = (2**27 // layout.block_size + tail) * layout.block_size
    weight = far(tmp_path / "weight", 17, row_bytes)
    weight[1:, -tail:] = random_blocks(16, 256, encoding, torch.Generator().manual_seed(2))

    tile = last_tile(packed_gguf(weight, encoding))

    near = weight[1:, -tail:].contiguous()
    assert tile.any()
    assert torch.equal(tile, last_tile(packed_gguf(near, encoding)))


@pytest.mark.parametrize("is_awq", [False, True])
def test_int4_words_far_into_the_weight_are_read(is_awq: bool, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    qweight = far(tmp_path / "weight", 2**11 + 64, 2**20, np.int32)
    columns = qweight.shape[1] * (8 if is_awq else 1)
    qzeros, scales = torch.zeros(1, columns // 8).int(), torch.ones(1, columns).half()
    rows, words = (64, 2) if is_awq else (8, 16)
    random = torch.randint(-(2**31), 2**31, (rows, words), generator=generator).int()
    qweight[-rows:, -words:] = random

    def tile(*layer: torch.Tensor) -> torch.Tensor:
        if is_awq:
            return last_tile(packed_awq(*layer, group_size=-1))
        return last_tile(packed_gptq(*layer, group_size=-1, zero_offset=1))

    found = tile(qweight, qzeros, scales)

    assert found.any()
    near = random, qzeros[:, -2:].contiguous(), scales[:, -16:].contiguous()
    assert torch.equal(found, tile(*near))


@pytest.mark.parametrize("is_nvidia", [False, True])
def test_fp4_bytes_far_into_the_weight_are_read(is_nvidia: bool, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    group = 16 if is_nvidia else 32
    weight = far(tmp_path / "weight", 17, 2**27 + 32)
    scale = far(tmp_path / "scale", 17, (2**28 + 64) // group)
    weight[1:, -32:] = torch.randint(0, 256, (16, 32), generator=generator).byte()
    scale[1:, -64 // group :] = torch.randint(1, 126, (16, 64 // group), generator=generator).byte()

    def tile(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if is_nvidia:
            one = torch.ones(1)
            return last_tile(packed_nvfp4(weight, scale.view(torch.float8_e4m3fn), one))
        return last_tile(packed_mxfp4(weight, scale))

    found = tile(weight, scale)

    assert found.any()
    near = weight[1:, -32:].contiguous(), scale[1:, -64 // group :].contiguous()
    assert torch.equal(found, tile(*near))
