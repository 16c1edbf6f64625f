"""Numbers of GGUF blocks, on the host."""

import torch

from quire.kernels.gguf import dequantize_gguf
from quire.kernels.gguf.encodings import in_features

_NUMBERS_AT_ONCE = 4 * 1024**2
"""Dequantizing takes several times the memory of its result."""


def dequantize_rows(blocks: torch.Tensor, ggml_type: str, dtype: torch.dtype) -> torch.Tensor:
    """The numbers [N, K] of `blocks` [N, bytes per row], uint8, as `dtype`."""
    width = in_features(blocks.shape[1], ggml_type)
    numbers = torch.empty(blocks.shape[0], width, dtype=dtype)
    step = max(_NUMBERS_AT_ONCE // width, 1)
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step].contiguous()
        numbers[start : start + step] = dequantize_gguf(part, ggml_type, dtype)
    return numbers
