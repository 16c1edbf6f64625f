"""Weights as GGUF files store them: dequantization, and matmul on the raw blocks."""

from typing import Any

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.dequantizing_matmul import check_input, check_out_dtype
from quire.kernels.gguf.encodings import block_parameters, in_features
from quire.kernels.torch_op import torch_op


def check_gguf_weight(
    name: str,
    weight: torch.Tensor,
    encoding: str,
    encoding_name: str = "encoding",
    device: torch.device | None = None,
) -> None:
    """Raise ValueError unless `weight` is rows of whole blocks of `encoding`."""
    layout = block_parameters(encoding, encoding_name)
    check_tensor(name, weight, ("N", "bytes"), torch.uint8, device=device)
    if weight.shape[1] % layout.block_size:
        raise ValueError(
            f"{name} must have rows of whole {encoding} blocks of {layout.block_size} bytes, "
            f"got {weight.shape[1]} bytes"
        )


def _fake_dequantize(
    weight_bytes: torch.Tensor, encoding: str, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    rows, row_bytes = weight_bytes.shape
    return weight_bytes.new_empty(rows, in_features(row_bytes, encoding), dtype=out_dtype)


@torch_op(fake=_fake_dequantize)
def dequantize_gguf(
    weight_bytes: torch.Tensor, encoding: str, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The weights of GGUF blocks, computed in fp32 in ggml's order and rounded to `out_dtype`.

    Args:
        weight_bytes: [N, bytes per row] uint8: each row's blocks as the file has them,
            contiguous.
        encoding: one of `encodings.ENCODINGS`, such as "Q4_0" or "Q6_K".
        out_dtype: bfloat16, float16 or float32.

    Returns:
        [N, K], K = blocks per row * weights per block.

    Raises:
        ValueError: another encoding, a shape or dtype outside the above.
    """
    check_gguf_weight("weight_bytes", weight_bytes, encoding)
    check_out_dtype(out_dtype)
    if weight_bytes.is_cuda:
        from quire.kernels.gguf.kernel import dequantize_gguf_triton as run
    else:
        from quire.kernels.gguf.reference import dequantize_gguf_reference as run
    return run(weight_bytes, encoding, out_dtype)


def _fake_matmul(x_TK: torch.Tensor, weight_bytes: torch.Tensor, **_: Any) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], weight_bytes.shape[0])


@torch_op(fake=_fake_matmul)
def matmul_gguf(
    x_TK: torch.Tensor,
    weight_bytes: torch.Tensor,
    encoding: str,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b with W read from raw GGUF blocks.

    The weights are those of `dequantize_gguf` rounded to the dtype of x; sums are in fp32. On
    CUDA they are dequantized in registers and a row's bits do not depend on the other rows. On a
    CPU every call dequantizes the whole weight first: to serve there, dequantize once at load
    and use `quire.kernels.linear.prepare_linear`.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        weight_bytes: [N, bytes per row] uint8, as of `dequantize_gguf`.
        encoding: as of `dequantize_gguf`.
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x.

    Raises:
        ValueError: another encoding, a shape, dtype or device outside the above.
    """
    check_gguf_weight("weight_bytes", weight_bytes, encoding, device=x_TK.device)
    rows, row_bytes = weight_bytes.shape
    check_input(x_TK, in_features(row_bytes, encoding), rows, bias_N)
    if x_TK.is_cuda:
        from quire.kernels.gguf.kernel import matmul_gguf_triton as run
    else:
        from quire.kernels.gguf.reference import matmul_gguf_reference as run
    return run(x_TK, weight_bytes, encoding, bias_N)
