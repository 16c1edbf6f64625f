"""4-bit weights in groups with a scale and a zero point: GPTQ and AWQ checkpoints as stored.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) in the layout of AutoGPTQ; AWQ (Lin et
al. 2023, https://arxiv.org/abs/2306.00978) in the GEMM layout of AutoAWQ.
"""

from typing import Any

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.dequantizing_matmul import check_input, check_out_dtype
from quire.kernels.gptq_awq.checks import check_awq, check_gptq
from quire.kernels.gptq_awq.reference import pack_words, unpack_words
from quire.kernels.torch_op import torch_op


def sort_gptq_groups(
    qweight: torch.Tensor, g_idx: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring the rows of a checkpoint with activation order (`desc_act`) into the order of groups.

    For load time: it reads data of the device. Rows of one group keep their order.

    Args:
        qweight: [K / 8, N] int32, as of `matmul_gptq`.
        g_idx: [K] int32, the group of each row.

    Returns:
        qweight with sorted rows, and the `perm_idx` [K] int32 that belongs to it.

    Raises:
        ValueError: a shape or dtype outside the above, or groups of different sizes.
    """
    check_tensor("qweight", qweight, ("K / 8", "N"), torch.int32)
    in_features = qweight.shape[0] * 8
    check_tensor("g_idx", g_idx, (in_features,), torch.int32, device=qweight.device)
    if in_features and int(g_idx.min()) < 0:
        raise ValueError(f"g_idx must be from 0, got {int(g_idx.min())}")
    sizes = torch.unique(torch.bincount(g_idx)).tolist()
    if len(sizes) > 1:
        raise ValueError(f"g_idx must have as many rows in each group, got groups of {sizes}")
    order = torch.sort(g_idx, stable=True).indices
    return pack_words(unpack_words(qweight, 0)[order]), order.int()


def _fake_dequantize_gptq(
    qweight: torch.Tensor, out_dtype: torch.dtype = torch.float32, **_: Any
) -> torch.Tensor:
    return qweight.new_empty(qweight.shape[1], qweight.shape[0] * 8, dtype=out_dtype)


@torch_op(fake=_fake_dequantize_gptq)
def dequantize_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    *,
    group_size: int,
    perm_idx: torch.Tensor | None = None,
    zero_offset: int = 1,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The weights [N, K] of a GPTQ layer, computed in fp32 and rounded to `out_dtype`.

    Arguments and errors as of `matmul_gptq`; `out_dtype` is bfloat16, float16 or float32. Columns
    are those of x, so that `perm_idx` is undone.
    """
    check_gptq(qweight, qzeros, scales, group_size, perm_idx, zero_offset)
    check_out_dtype(out_dtype)
    if qweight.is_cuda:
        from quire.kernels.gptq_awq.kernel import dequantize_gptq_triton as run
    else:
        from quire.kernels.gptq_awq.reference import dequantize_gptq_reference as run
    return run(
        qweight,
        qzeros,
        scales,
        group_size=group_size,
        perm_idx=perm_idx,
        zero_offset=zero_offset,
        out_dtype=out_dtype,
    )


def _fake_matmul_gptq(x_TK: torch.Tensor, qweight: torch.Tensor, **_: Any) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], qweight.shape[1])


@torch_op(fake=_fake_matmul_gptq)
def matmul_gptq(
    x_TK: torch.Tensor,
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    *,
    group_size: int,
    perm_idx: torch.Tensor | None = None,
    zero_offset: int = 1,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b with W^T[k, n] = scales[g, n] * (number[k, n] - zero[g, n]), g = k // group_size.

    Weights are computed in fp32 and rounded to the dtype of x; sums are in fp32. On CUDA they are
    dequantized in registers and a row's bits do not depend on the other rows. On a CPU every call
    dequantizes the whole weight first: to serve there, use `dequantize_gptq` once at load and
    `quire.kernels.linear.prepare_linear`.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        qweight: [K / 8, N] int32; bits 4 i to 4 i + 3 of word w are row 8 w + i.
        qzeros: [groups, N / 8] int32; bits 4 i to 4 i + 3 of word w are column 8 w + i. None: every
            zero point is 8 (symmetric).
        scales: [groups, N], bfloat16, float16 or float32.
        group_size: rows of K with the same scale: 32, 64, 128, or -1 for one group.
        perm_idx: [K] int32, a permutation: row k of the weight meets column `perm_idx[k]` of x.
            `sort_gptq_groups` makes it from the g_idx of a checkpoint with activation order.
        zero_offset: 1 for checkpoints that store each zero point minus one, modulo 16 (AutoGPTQ's
            format "gptq"); 0 for those that store it as it is ("gptq_v2").
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or number outside the above.
    """
    check_gptq(qweight, qzeros, scales, group_size, perm_idx, zero_offset, device=x_TK.device)
    check_input(x_TK, qweight.shape[0] * 8, qweight.shape[1], bias_N)
    if x_TK.is_cuda:
        from quire.kernels.gptq_awq.kernel import matmul_gptq_triton as run
    else:
        from quire.kernels.gptq_awq.reference import matmul_gptq_reference as run
    return run(
        x_TK,
        qweight,
        qzeros,
        scales,
        group_size=group_size,
        perm_idx=perm_idx,
        zero_offset=zero_offset,
        bias_N=bias_N,
    )


def _fake_dequantize_awq(
    qweight: torch.Tensor, out_dtype: torch.dtype = torch.float32, **_: Any
) -> torch.Tensor:
    return qweight.new_empty(qweight.shape[1] * 8, qweight.shape[0], dtype=out_dtype)


@torch_op(fake=_fake_dequantize_awq)
def dequantize_awq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    group_size: int,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The weights [N, K] of an AWQ layer, computed in fp32 and rounded to `out_dtype`.

    Arguments and errors as of `matmul_awq`; `out_dtype` is bfloat16, float16 or float32.
    """
    check_awq(qweight, qzeros, scales, group_size)
    check_out_dtype(out_dtype)
    if qweight.is_cuda:
        from quire.kernels.gptq_awq.kernel import dequantize_awq_triton as run
    else:
        from quire.kernels.gptq_awq.reference import dequantize_awq_reference as run
    return run(qweight, qzeros, scales, group_size=group_size, out_dtype=out_dtype)


def _fake_matmul_awq(x_TK: torch.Tensor, qweight: torch.Tensor, **_: Any) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], qweight.shape[1] * 8)


@torch_op(fake=_fake_matmul_awq)
def matmul_awq(
    x_TK: torch.Tensor,
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    group_size: int,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b with W^T[k, n] = scales[g, n] * (number[k, n] - zero[g, n]), g = k // group_size.

    Rounding, exactness and cost on a CPU as of `matmul_gptq`.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        qweight: [K, N / 8] int32; the nibbles of word w, from the lowest, are columns 8 w + 0, 2,
            4, 6, 1, 3, 5, 7.
        qzeros: [groups, N / 8] int32 in the same order.
        scales: [groups, N], bfloat16, float16 or float32.
        group_size: rows of K with the same scale: 32, 64, 128, or -1 for one group.
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or number outside the above.
    """
    check_awq(qweight, qzeros, scales, group_size, device=x_TK.device)
    check_input(x_TK, qweight.shape[0], qweight.shape[1] * 8, bias_N)
    if x_TK.is_cuda:
        from quire.kernels.gptq_awq.kernel import matmul_awq_triton as run
    else:
        from quire.kernels.gptq_awq.reference import matmul_awq_reference as run
    return run(x_TK, qweight, qzeros, scales, group_size=group_size, bias_N=bias_N)
