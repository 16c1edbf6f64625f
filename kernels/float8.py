"""What the fp8 ops share: the type, its limits, and which shape of scales means what."""

import torch

from quire.kernels.checks import check_tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
FLOAT32 = torch.finfo(torch.float32)

SCALE_BLOCK = 128
"""Rows and columns of a block of fp8 weights that share a scale (DeepSeek-V3, Qwen3 FP8)."""


def scale_blocks(weight: torch.Tensor, weight_scale: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of a matrix that share a scale.

    Raises:
        ValueError: a scale of another shape than the documented ones.
    """
    experts, rows, columns = weight.shape
    blocks = (-(-rows // SCALE_BLOCK), -(-columns // SCALE_BLOCK))
    sizes = {
        (1, 1): (rows, columns),
        (rows, 1): (1, columns),
        blocks: (SCALE_BLOCK, SCALE_BLOCK),
    }
    found = sizes.get((weight_scale.shape[1], weight_scale.shape[2]))
    if found is None or weight_scale.shape[0] != experts:
        shapes = " or ".join(f"[{experts}, {row}, {column}]" for row, column in sizes)
        raise ValueError(f"weight_scale must be {shapes}, got {list(weight_scale.shape)}")
    return found


def are_block_scales(b_NK: torch.Tensor, b_scales: torch.Tensor) -> bool:
    """Whether they differ per block; a single block's scale is one number."""
    features, columns = b_NK.shape
    blocks = (-(-features // SCALE_BLOCK), -(-columns // SCALE_BLOCK))
    return b_scales.shape == blocks and b_scales.numel() != 1 and b_scales.shape != (features, 1)


def check_scale(name: str, scale: torch.Tensor, device: torch.device) -> None:
    """Raise ValueError unless `scale` is one float32 on `device`."""
    if scale.numel() != 1 or scale.ndim > 2:
        raise ValueError(f"{name} must be [], [1] or [1, 1], got {list(scale.shape)}")
    check_tensor(name, scale, scale.shape, torch.float32, device=device)
