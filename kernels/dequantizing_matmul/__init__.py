"""Matmul with packed weights that are dequantized a tile at a time, for every packed format.

A format gives a Triton function that dequantizes one tile (`Packed.decode` in `kernel`); the
loop over K, the row permutation and the output are shared.
"""

import torch

from quire.kernels.checks import FLOATS, check_tensor


def check_input(
    x_TK: torch.Tensor, in_features: int, out_features: int, bias_N: torch.Tensor | None
) -> None:
    """Raise ValueError unless x and bias fit a packed weight of [out_features, in_features]."""
    check_tensor("x_TK", x_TK, ("T", in_features), FLOATS)
    if in_features == 0:
        raise ValueError(f"x_TK must have at least one column, got {list(x_TK.shape)}")
    if bias_N is not None:
        check_tensor("bias_N", bias_N, (out_features,), x_TK.dtype, device=x_TK.device)


def check_out_dtype(out_dtype: torch.dtype) -> None:
    """Raise ValueError unless weights can be dequantized to `out_dtype`."""
    if out_dtype not in FLOATS:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        given = str(out_dtype).removeprefix("torch.")
        raise ValueError(f"out_dtype must be {names}, got {given}")
