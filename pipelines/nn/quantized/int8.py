"""int8 weights with a scale per row. Activations are not quantized."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from quire.kernels.int8 import dequantize_int8, matmul_int8
from quire.kernels.linear.cpu_native import NativeLinear
from quire.kernels.native import library
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.at_load import AtLoadEncoding
from quire.pipelines.nn.linear_weight import Apply, DenseWeight, PackedWeight, finite_scale

_INT8_MAX = 127
_TOGETHER = 1 << 22
"""Numbers that are quantized together: their copies in float32 stay small."""


class Int8Weight(PackedWeight):
    """`weight` [N, K] int8, `scale` float32 [N, 1]; as stored, or made of plain numbers."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.out_dim, self.in_dim = weight.shape
        self.weight_scale: torch.Tensor = scale

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        if not isinstance(encoding, AtLoadEncoding):
            weight = tensors["weight"]
            scale = finite_scale("weight_scale", tensors["weight_scale"])
            return cls(weight, scale.reshape(-1, 1).expand(len(weight), 1).contiguous(), dtype)
        plain = DenseWeight.from_tensors(encoding, tensors, tensors["weight"].dtype).dense()
        rows = max(1, _TOGETHER // plain.shape[1])
        parts = [_quantize_rows(part.float()) for part in torch.split(plain, rows)]
        weight, scale = (torch.cat(found) for found in zip(*parts, strict=True))
        return cls(weight, scale, dtype)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        weight = torch.cat([part._weight for part in parts])
        return cls(weight, torch.cat([part.weight_scale for part in parts]), parts[0]._dtype)

    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        weight = torch.cat([self._weight[part, columns] for part in rows])
        scale = torch.cat([self.weight_scale[part] for part in rows])
        return type(self)(weight, scale, self._dtype)

    def dense(self) -> torch.Tensor:
        return dequantize_int8(self._weight, self.weight_scale, self._dtype)

    def is_packed_on(self, device: torch.device) -> bool:
        is_native = library() is not None and self._dtype in (torch.float32, torch.bfloat16)
        return super().is_packed_on(device) or (device.type == "cpu" and is_native)

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        weight, scale = self._weight.to(device), self.weight_scale.to(device)
        if device.type == "cpu" and (native := library()) is not None:
            return NativeLinear(
                weight, bias_N, native=native, scale_N=scale.squeeze(1), dtype=self._dtype
            )
        return lambda x_TK: matmul_int8(x_TK.contiguous(), weight, scale, bias_N)


def _quantize_rows(numbers_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # The smallest normal: zeros stay zeros, and no quotient is more than an int8.
    smallest = torch.finfo(torch.float32).smallest_normal
    scale = (numbers_NK.abs().amax(1, keepdim=True) / _INT8_MAX).clamp_min(smallest)
    return (numbers_NK / scale).round().to(torch.int8), scale
