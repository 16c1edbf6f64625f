"""Quantization to fp8 in plain torch: the definition of correct, and the CPU path."""

import torch
import torch.nn.functional as F

from quire.kernels.float8 import FLOAT32, FP8, FP8_MAX
from quire.kernels.quantize_scaled_float8.groups import WHOLE_ROW, group_width, num_groups


def quantize_static_scaled_float8_reference(
    x_TK: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """As `quantize_static_scaled_float8`."""
    return (x_TK.float() / scale.reshape(())).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantize_dynamic_scaled_float8_reference(
    x_TK: torch.Tensor,
    *,
    group_size_or_per_token: int = WHOLE_ROW,
    scale_ub: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantize_dynamic_scaled_float8`."""
    rows, columns = x_TK.shape
    groups = num_groups(columns, group_size_or_per_token)
    width = group_width(columns, group_size_or_per_token)
    wide = F.pad(x_TK.float(), (0, groups * width - columns)).view(rows, groups, width)
    greatest = wide.abs().nan_to_num(nan=0.0).amax(-1)
    bounded = greatest.clamp(max=FLOAT32.max if scale_ub is None else scale_ub)
    # On CUDA torch divides by a host number through its reciprocal, which rounds twice.
    scales = (bounded / bounded.new_full((), FP8_MAX)).clamp(min=FLOAT32.tiny)
    stored = (wide / scales[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return stored.flatten(1)[:, :columns].contiguous(), scales
