"""Weights that are quantized while a dense checkpoint is loaded: fp8 and GGUF blocks."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from quire.kernels.gguf import dequantize_gguf, matmul_gguf
from quire.kernels.gguf.encodings import block_parameters, in_features
from quire.kernels.linear.cpu_groups import compiled, gguf_matrix
from quire.kernels.linear.cpu_native import native_for
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.at_load import BlocksAtLoad
from quire.pipelines.architectures.quantized.float8 import PER_TOKEN, ROWWISE, Float8Config
from quire.pipelines.nn.linear_weight import Apply, DenseWeight, PackedWeight
from quire.pipelines.nn.quantized.borders import check_borders
from quire.pipelines.nn.quantized.float8 import Float8Weight, quantize_rows


class Float8AtLoadWeight(Float8Weight):
    """A scale per row and per token."""

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        numbers = DenseWeight.from_tensors(encoding, tensors, torch.float32).dense()
        return cls(*quantize_rows(numbers), Float8Config(ROWWISE, PER_TOKEN), dtype)


class BlocksWeight(PackedWeight):
    """`blocks` [N, bytes] uint8 of GGUF's `kind`."""

    def __init__(self, blocks: torch.Tensor, kind: str, dtype: torch.dtype) -> None:
        super().__init__(blocks, dtype)
        self.out_dim = blocks.shape[0]
        self.in_dim = in_features(blocks.shape[1], kind)
        self._kind = kind

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, BlocksAtLoad)
        numbers = DenseWeight.from_tensors(encoding, tensors, torch.float32).dense()
        quantize = quantize_q4_0 if encoding.kind == "Q4_0" else quantize_q8_0
        return cls(quantize(numbers), encoding.kind, dtype)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        first = parts[0]
        return cls(torch.cat([part._weight for part in parts]), first._kind, first._dtype)

    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        layout = block_parameters(self._kind)
        check_borders("columns", columns, self.in_dim, layout.elements_per_block)
        begin, end = (
            place // layout.elements_per_block * layout.block_size
            for place in (columns.start, columns.stop)
        )
        blocks = torch.cat([self._weight[part, begin:end] for part in rows])
        return type(self)(blocks, self._kind, self._dtype)

    def dense(self) -> torch.Tensor:
        return dequantize_gguf(self._weight, self._kind, self._dtype)

    def is_packed_on(self, device: torch.device) -> bool:
        return super().is_packed_on(device) or native_for(device, self._dtype) is not None

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        if (native := native_for(device, self._dtype)) is not None:
            return compiled(gguf_matrix(self._weight, self._kind), bias_N, self._dtype, native)
        blocks, kind = self._weight.to(device), self._kind
        return lambda x_TK: matmul_gguf(x_TK.contiguous(), blocks, kind, bias_N)


def quantize_q4_0(numbers_NK: torch.Tensor) -> torch.Tensor:
    """float32 [N, K], K in whole blocks of 32, to [N, K / 32 * 18] uint8.

    As ggml's quantize_row_q4_0_ref (https://github.com/ggml-org/ggml, `src/ggml-quants.c`): the
    number of greatest magnitude is -8 times the scale.
    """
    blocks = torch.unflatten(numbers_NK, 1, (-1, 32))
    place = blocks.abs().argmax(2, keepdim=True)
    scale = blocks.gather(2, place) / -8
    numbers = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    packed = numbers[..., :16] | numbers[..., 16:] << 4
    return torch.cat((_half_bytes(scale), packed), 2).flatten(1)


def quantize_q8_0(numbers_NK: torch.Tensor) -> torch.Tensor:
    """float32 [N, K], K in whole blocks of 32, to [N, K / 32 * 34] uint8.

    As ggml's quantize_row_q8_0_ref; halves are rounded away from zero.
    """
    blocks = torch.unflatten(numbers_NK, 1, (-1, 32))
    scale = blocks.abs().amax(2, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    numbers = (scaled.abs() + 0.5).floor().copysign(scaled).to(torch.int8)
    return torch.cat((_half_bytes(scale), numbers.view(torch.uint8)), 2).flatten(1)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _half_bytes(scale: torch.Tensor) -> torch.Tensor:
    return scale.to(torch.float16).view(torch.uint8)
