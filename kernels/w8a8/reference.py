"""int8 times int8 in plain torch: the definition of correct."""

import torch

SMALLEST = torch.finfo(torch.float32).tiny
CHUNK = 1024
"""Features whose products of int8 a float32 sums without rounding: 1024 * 127 * 128 < 2**24."""


def quantize_rows_int8_reference(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantize_rows_int8`."""
    x = x_TK.float()
    greatest = x.abs().amax(1)
    scale = (greatest / 127).clamp_min(SMALLEST).where(greatest.isfinite(), torch.nan).unsqueeze(1)
    return (x / scale).nan_to_num(0).round().to(torch.int8), scale


def chunks_of(weight_NK: torch.Tensor) -> list[torch.Tensor]:
    """Weights of whole numbers in float32, [N, at most CHUNK] each."""
    return [chunk.float() for chunk in torch.split(weight_NK, CHUNK, 1)]


def matmul_chunks(
    x_TK: torch.Tensor,
    chunks: list[torch.Tensor],
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_w8a8`, with the weights as `chunks_of` has them."""
    numbers, scale_T1 = quantize_rows_int8_reference(x_TK)
    sums = torch.zeros(len(x_TK), len(scale_N1), dtype=torch.float64, device=x_TK.device)
    for part, chunk in zip(torch.split(numbers, CHUNK, 1), chunks, strict=True):
        sums += part.float() @ chunk.t()
    y = sums.float() * scale_T1 * scale_N1.t()
    return (y if bias_N is None else y + bias_N.float()).to(x_TK.dtype)


def matmul_w8a8_reference(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N1: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_w8a8`."""
    return matmul_chunks(x_TK, chunks_of(weight_NK), scale_N1, bias_N)
