"""4-bit GPTQ and AWQ weights in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.linear.reference import linear_reference

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of 8 columns each nibble of an AWQ word is, from the lowest."""


def unpack_words(words: torch.Tensor, dim: int) -> torch.Tensor:
    """int32 words to their 8 numbers from 0 to 15, lowest bits first, along `dim` (0 or 1)."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    numbers = words.unsqueeze(dim + 1) >> (shifts if dim else shifts[:, None]) & 15
    return numbers.flatten(dim, dim + 1)


def pack_words(numbers: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpack_words` along dimension 0."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int64, device=numbers.device)
    words = (torch.unflatten(numbers.long(), 0, (-1, 8)) << shifts[:, None]).sum(1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _in_groups(numbers_KN: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """scale * (number - zero), [N, K] float32; `zeros` broadcasts with `scales` [groups, N]."""
    groups, rows = scales.shape[0], numbers_KN.shape[0]
    grouped = torch.unflatten(numbers_KN, 0, (groups, rows // groups)) - zeros[:, None]
    return (scales.float()[:, None] * grouped.float()).flatten(0, 1).t().contiguous()


def dequantize_gptq_reference(
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    *,
    group_size: int,
    perm_idx: torch.Tensor | None = None,
    zero_offset: int = 1,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """As `dequantize_gptq`."""
    if qzeros is None:
        zeros = qweight.new_full((1, 1), 8)
    else:
        zeros = (unpack_words(qzeros, 1) + zero_offset) & 15
    weight = _in_groups(unpack_words(qweight, 0), zeros, scales).to(out_dtype)
    if perm_idx is None:
        return weight
    return torch.empty_like(weight).index_copy_(1, perm_idx.long(), weight)


def matmul_gptq_reference(
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
    """As `matmul_gptq`."""
    weight = dequantize_gptq_reference(
        qweight,
        qzeros,
        scales,
        group_size=group_size,
        perm_idx=perm_idx,
        zero_offset=zero_offset,
        out_dtype=x_TK.dtype,
    )
    return linear_reference(x_TK, weight, bias_N)


def dequantize_awq_reference(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    group_size: int,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """As `dequantize_awq`."""
    place = [8 * word + AWQ_ORDER.index(i) for word in range(qweight.shape[1]) for i in range(8)]
    columns = torch.tensor(place, dtype=torch.int64, device=qweight.device)
    numbers, zeros = (unpack_words(words, 1)[:, columns] for words in (qweight, qzeros))
    return _in_groups(numbers, zeros, scales).to(out_dtype)


def matmul_awq_reference(
    x_TK: torch.Tensor,
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    group_size: int,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_awq`."""
    weight = dequantize_awq_reference(
        qweight, qzeros, scales, group_size=group_size, out_dtype=x_TK.dtype
    )
    return linear_reference(x_TK, weight, bias_N)
