"""NVFP4 and MXFP4 weights. Activations are not quantized."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from quire.kernels.fp4 import dequantize_mxfp4, dequantize_nvfp4, matmul_mxfp4, matmul_nvfp4
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.fp4 import (
    MXFP4_GROUP,
    NVFP4_GROUP,
    MXFP4Encoding,
    NVFP4Encoding,
)
from quire.pipelines.nn.linear_weight import Apply, PackedWeight, finite_scale
from quire.pipelines.nn.quantized.borders import check_borders, select_units

_E8M0_NAN = 255


class MXFP4Weight(PackedWeight):
    """`weight` [N, K / 2] uint8, `scale` [N, K / 32] uint8 or e8m0."""

    group = MXFP4_GROUP

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.out_dim, self.in_dim = weight.shape[0], weight.shape[1] * 2
        self.weight_scale: torch.Tensor = scale

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, MXFP4Encoding)
        scale = tensors["weight_scale"].view(torch.uint8)
        if (scale == _E8M0_NAN).any():
            raise ValueError("weight_scale: expected finite numbers, found NaN")
        return cls(tensors["weight_packed"], scale, dtype)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        weight = torch.cat([part._weight for part in parts])
        return cls(weight, _cat_scales(parts), parts[0]._dtype)

    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        return type(self)(*_cut(self, self.group, rows, columns), self._dtype)

    def dense(self) -> torch.Tensor:
        return dequantize_mxfp4(self._weight, self.weight_scale, self._dtype)

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        weight, scale = self._weight.to(device), self.weight_scale.to(device)
        return lambda x_TK: matmul_mxfp4(x_TK.contiguous(), weight, scale, bias_N)


class NVFP4Weight(PackedWeight):
    """`weight` [N, K / 2] uint8, `scale` [N, K / 16] e4m3, `scale_2` float32 [] that multiplies."""

    group = NVFP4_GROUP

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        scale_2: torch.Tensor,
        dtype: torch.dtype,
        input_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__(weight, dtype)
        self.out_dim, self.in_dim = weight.shape[0], weight.shape[1] * 2
        self.weight_scale: torch.Tensor = scale
        self.weight_scale_2: torch.Tensor = scale_2
        self.input_scale = input_scale

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, NVFP4Encoding)
        name = encoding.scale_2_name
        scale_2 = finite_scale(name, tensors[name]).reshape(())
        if encoding.is_inverse:
            if scale_2 == 0:
                raise ValueError(f"{name}: expected another number than 0")
            scale_2 = 1 / scale_2
        finite_scale("weight_scale", tensors["weight_scale"])
        input_scale = tensors.get(encoding.input_scale_name)
        return cls(
            tensors[encoding.weight_name],
            tensors["weight_scale"],
            scale_2,
            dtype,
            None if input_scale is None else input_scale.reshape(()),
        )

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        """None where the scales of the wholes differ: the kernel takes one."""
        first = parts[0]
        if any(part.weight_scale_2 != first.weight_scale_2 for part in parts):
            return None
        weight = torch.cat([part._weight for part in parts])
        return cls(weight, _cat_scales(parts), first.weight_scale_2, first._dtype)

    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        weight, scale = _cut(self, self.group, rows, columns)
        return type(self)(weight, scale, self.weight_scale_2, self._dtype, self.input_scale)

    def dense(self) -> torch.Tensor:
        return dequantize_nvfp4(self._weight, self.weight_scale, self.weight_scale_2, self._dtype)

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        weight, scale = self._weight.to(device), self.weight_scale.to(device)
        scale_2 = self.weight_scale_2.to(device)
        return lambda x_TK: matmul_nvfp4(x_TK.contiguous(), weight, scale, scale_2, bias_N)


def _cat_scales(parts: Sequence[MXFP4Weight] | Sequence[NVFP4Weight]) -> torch.Tensor:
    # torch cannot concatenate every 8-bit float.
    scales = [part.weight_scale for part in parts]
    return torch.cat([scale.view(torch.uint8) for scale in scales]).view(scales[0].dtype)


def _cut(
    weight: MXFP4Weight | NVFP4Weight, group: int, rows: Sequence[slice], columns: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    check_borders("columns", columns, weight.in_dim, group)
    scale = weight.weight_scale
    codes = select_units(select_units(scale.view(torch.uint8), rows, 1), [columns], group, 1)
    values = select_units(select_units(weight.weight, rows, 1), [columns], 2, 1)
    return values.contiguous(), codes.contiguous().view(scale.dtype)
