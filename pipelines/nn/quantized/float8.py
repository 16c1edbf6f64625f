"""fp8 weights with scales of the whole, of rows or of blocks.

On a GPU activations are quantized too, as the checkpoint says, dynamic scales always per token. A
CPU has no fp8 matmul: there the weights are dequantized and activations stay as they are, which is
closer to the model before quantization.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch

from quire.config.errors import ConfigError
from quire.kernels.float8 import SCALE_BLOCK
from quire.kernels.linear.dispatch import capability_of
from quire.kernels.matmul_scaled_float8 import FP8_CAPABILITY, dynamic_scaled_matmul
from quire.kernels.quantize_scaled_float8 import (
    quantize_dynamic_scaled_float8,
    quantize_static_scaled_float8,
)
from quire.kernels.quantize_scaled_float8.groups import WHOLE_ROW
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.float8 import (
    Float8Config,
    Float8Encoding,
    Float8InputScaleSpec,
    Float8ScaleOrigin,
)
from quire.pipelines.nn.linear_weight import Apply, PackedWeight, finite_scale
from quire.pipelines.nn.quantized.borders import check_borders, select_units

Quantize = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Activations to fp8 and their scales."""


class Float8Weight(PackedWeight):
    """`weight` [N, K] in e4m3; `scale` float32: [], [N, 1] or per block.

    `input_scale` float32 [], where the checkpoint has one.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        config: Float8Config,
        dtype: torch.dtype,
        input_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__(weight, dtype)
        self.out_dim, self.in_dim = weight.shape
        self.weight_scale: torch.Tensor = scale
        self.input_scale = input_scale
        self._config = config

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, Float8Encoding)
        scale = _the_one(tensors, encoding.scale_names)
        if scale.numel() == 1 and not encoding.config.is_block:
            scale = scale.reshape(())
        elif scale.ndim == 1:
            scale = scale[:, None]
        input_scale = None
        if encoding.config.is_static:
            input_scale = _the_one(tensors, encoding.input_scale_names).reshape(())
            if input_scale <= 0:
                raise ValueError(f"the scale of inputs: expected more than 0, found {input_scale}")
        return cls(tensors["weight"], scale, encoding.config, dtype, input_scale)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        if parts[0]._config.is_block:
            if any(part.out_dim % SCALE_BLOCK for part in parts[:-1]):
                return None
            scales = [part.weight_scale for part in parts]
        else:
            scales = [part.weight_scale.expand(part.out_dim, 1) for part in parts]
        inputs = [part.input_scale for part in parts if part.input_scale is not None]
        return cls(
            torch.cat([part._weight for part in parts]),
            torch.cat(scales),
            parts[0]._config,
            parts[0]._dtype,
            torch.stack(inputs).amax() if inputs else None,
        )

    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        scale = self.weight_scale
        if self._config.is_block:
            for part in rows:
                check_borders("rows", part, self.out_dim, SCALE_BLOCK)
            for part in rows[:-1]:
                check_borders("rows", part, -1, SCALE_BLOCK)
            check_borders("columns", columns, self.in_dim, SCALE_BLOCK)
            scale = select_units(scale, rows, SCALE_BLOCK, 0)
            scale = select_units(scale, [columns], SCALE_BLOCK, 1)
        elif scale.ndim == 2:
            scale = select_units(scale, rows, 1)
        weight = torch.cat([self._weight[part, columns] for part in rows])
        return type(self)(weight, scale, self._config, self._dtype, self.input_scale)

    def dense(self) -> torch.Tensor:
        scale = self.weight_scale
        if self._config.is_block:
            scale = scale.repeat_interleave(SCALE_BLOCK, 0)[: self.out_dim]
            scale = scale.repeat_interleave(SCALE_BLOCK, 1)[:, : self.in_dim]
        return (self._weight.float() * scale).to(self._dtype)

    def is_packed_on(self, device: torch.device) -> bool:
        return super().is_packed_on(device) and self._config.input_scale is not None

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        assert self._config.input_scale is not None
        if device.type == "cuda" and (capability := capability_of(device)) < FP8_CAPABILITY:
            raise ConfigError(
                f"fp8 layers: expected a GPU of compute capability {FP8_CAPABILITY / 10} or more, "
                f"found {capability / 10}; use another checkpoint or quantization"
            )
        weight, scale = self._weight.to(device), self.weight_scale.to(device)
        quantize = _quantize_for(self._config.input_scale, self.input_scale, device)

        def apply(x_TK: torch.Tensor) -> torch.Tensor:
            stored, scales = quantize(x_TK.contiguous())
            return dynamic_scaled_matmul(
                stored, weight, scales, scale, out_type=x_TK.dtype, bias_N=bias_N
            )

        return apply


def _quantize_for(
    spec: Float8InputScaleSpec, scale: torch.Tensor | None, device: torch.device
) -> Quantize:
    if spec.origin is Float8ScaleOrigin.STATIC:
        assert scale is not None
        fixed = scale.to(device)
        return lambda x_TK: (quantize_static_scaled_float8(x_TK, fixed), fixed)
    group = WHOLE_ROW if spec.block_size is None else spec.block_size[1]
    upper = spec.activation_scale_ub
    return lambda x_TK: quantize_dynamic_scaled_float8(
        x_TK, group_size_or_per_token=group, scale_ub=upper
    )


def _the_one(tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    """The tensor that has one of `names`, checked, in float32."""
    found = [name for name in names if name in tensors]
    if len(found) != 1:
        raise ValueError(f"expected {' or '.join(names)}, found {' and '.join(found) or 'nothing'}")
    return finite_scale(found[0], tensors[found[0]])


def quantize_rows(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] to e4m3 with a float32 scale per row [N, 1]: greatest magnitude / 448."""
    return quantize_dynamic_scaled_float8(weight_NK.contiguous())
