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
    given = tensor.shape
    fits = len(given) == len(shape)
    if fits:
        # No generator: this runs some hundred times in a step.
        for wanted, size in zip(shape, given, strict=True):
            if wanted != size and not isinstance(wanted, str):
                fits = False
    if not fits:
        raise ValueError(f"{name} must be [{', '.join(map(str, shape))}], got {list(given)}")
    dtype = tensor.dtype
    if dtype is not dtypes and (isinstance(dtypes, torch.dtype) or dtype not in dtypes):
        allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else dtypes
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name} must be of {names}, got {str(dtype).removeprefix('torch.')}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())}")


def are_alike(first: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether all are contiguous, of one dtype and on one device.

    What an op that runs some dozen times in a step may ask before `check_tensor`, which has what
    a message needs and takes longer.
    """
    if not first.is_contiguous():
        return False
    dtype, device = first.dtype, first.device
    for other in others:
        if other.dtype is not dtype or other.device != device or not other.is_contiguous():
            return False
    return True


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
