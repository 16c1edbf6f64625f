"""Activations to fp8 with one given scale, or with scales of their own."""

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor
from quire.kernels.float8 import FLOAT32, FP8, check_scale
from quire.kernels.quantize_scaled_float8.groups import WHOLE_ROW, num_groups
from quire.kernels.torch_op import torch_op


def _fake_static(x_TK: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x_TK, dtype=FP8)


@torch_op(fake=_fake_static)
def quantize_static_scaled_float8(x_TK: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x / scale as float8_e4m3fn, so that stored * scale is x again.

    The quotient is rounded to float32, clamped to +-448 and rounded to nearest even; NaN stays
    NaN (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433).

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        scale: one float32 on the device of x: [], [1] or [1, 1]; must be positive (not checked:
            the value may not be known to the host yet).

    Returns:
        [T, K] of float8_e4m3fn.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("x_TK", x_TK, ("T", "K"), FLOATS)
    check_scale("scale", scale, x_TK.device)
    if x_TK.is_cuda:
        from quire.kernels.quantize_scaled_float8.kernel import (
            quantize_static_scaled_float8_triton as run,
        )
    else:
        from quire.kernels.quantize_scaled_float8.reference import (
            quantize_static_scaled_float8_reference as run,
        )
    return run(x_TK, scale)


def _fake_dynamic(
    x_TK: torch.Tensor,
    *,
    group_size_or_per_token: int = WHOLE_ROW,
    scale_ub: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = num_groups(x_TK.shape[1], group_size_or_per_token)
    scales = x_TK.new_empty(x_TK.shape[0], groups, dtype=torch.float32)
    return torch.empty_like(x_TK, dtype=FP8), scales


@torch_op(fake=_fake_dynamic)
def quantize_dynamic_scaled_float8(
    x_TK: torch.Tensor,
    *,
    group_size_or_per_token: int = WHOLE_ROW,
    scale_ub: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row, or each group of columns of a row, as float8_e4m3fn with a scale of its own.

    scale = min(greatest magnitude, scale_ub) / 448, at least the smallest normal float32 (a row
    of zeros stays zeros), and elements are x / scale as `quantize_static_scaled_float8` has them.
    NaN and infinity do not spoil their neighbours: NaN does not count for the scale and is
    stored as NaN, infinity counts as the greatest float32. A row's bits depend on it alone.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        group_size_or_per_token: columns that share a scale, counted from column 0 on (the last
            group may be short): 128 for block scales; -1 for one scale per row.
        scale_ub: greatest magnitude that a scale is made for (FBGEMM's activation_scale_ub);
            what is larger saturates; a normal float32. None: no bound.

    Returns:
        [T, K] of float8_e4m3fn, and the scales: float32 [T, groups of a row].

    Raises:
        ValueError: a shape, dtype, group size or bound outside the above.
    """
    check_tensor("x_TK", x_TK, ("T", "K"), FLOATS)
    if x_TK.shape[1] == 0:
        raise ValueError(f"x_TK must have at least one column, got {list(x_TK.shape)}")
    if group_size_or_per_token != WHOLE_ROW and group_size_or_per_token < 1:
        raise ValueError(
            f"group_size_or_per_token must be {WHOLE_ROW} or at least 1, "
            f"got {group_size_or_per_token}"
        )
    if scale_ub is not None:
        check_range("scale_ub", scale_ub, FLOAT32.tiny, FLOAT32.max)
    if x_TK.is_cuda:
        from quire.kernels.quantize_scaled_float8.kernel import (
            quantize_dynamic_scaled_float8_triton as run,
        )
    else:
        from quire.kernels.quantize_scaled_float8.reference import (
            quantize_dynamic_scaled_float8_reference as run,
        )
    return run(x_TK, group_size_or_per_token=group_size_or_per_token, scale_ub=scale_ub)
