"""What every op checks of a tensor before anything is written."""

from collections.abc import Collection, Sequence

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
"""The dtypes that weights and activations come in."""


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: Sequence[int | str],
    dtypes: torch.dtype | Collection[torch.dtype],
    *,
    device: torch.device | None = None,
    contiguous: bool = True,
) -> None:
    """Raise ValueError, naming argument, expected and given, unless the tensor is as described.

    In `shape` a number must be met and a letter stands for any size. `device` is that of the
    first tensor of the op: mixed devices are refused.
    """
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    described = f"[{', '.join(map(str, shape))}]"
    fits = tensor.ndim == len(shape) and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must be {described}, got {list(tensor.shape)}")
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        given = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be of {names}, got {given}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
