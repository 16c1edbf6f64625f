"""What is checked of 4-bit weights in groups before anything is computed."""

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor

GROUP_SIZES = (32, 64, 128, -1)
QUANT_METHODS = ("gptq", "awq")


def _groups(in_features: int, group_size: int) -> int:
    """How many groups K has; ValueError unless they come out even."""
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be one of {GROUP_SIZES}, got {group_size}")
    if in_features == 0:
        raise ValueError("qweight must have at least one row of K, got none")
    if in_features % group_size:
        raise ValueError(f"group_size {group_size} must divide K, got K = {in_features}")
    return 1 if group_size == -1 else in_features // group_size


def check_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    group_size: int,
    perm_idx: torch.Tensor | None,
    zero_offset: int,
    *,
    device: torch.device | None = None,
) -> None:
    """Raise ValueError unless the tensors are a GPTQ layer, as `matmul_gptq` says."""
    check_tensor("qweight", qweight, ("K / 8", "N"), torch.int32, device=device)
    words, columns = qweight.shape
    groups, device = _groups(words * 8, group_size), qweight.device
    if qzeros is not None:
        if columns % 8:
            raise ValueError(f"qweight must have a multiple of 8 columns, got {columns}")
        check_tensor("qzeros", qzeros, (groups, columns // 8), torch.int32, device=device)
    check_tensor("scales", scales, (groups, columns), FLOATS, device=device)
    if perm_idx is not None:
        check_tensor("perm_idx", perm_idx, (words * 8,), torch.int32, device=device)
    check_range("zero_offset", zero_offset, 0, 1)


def check_awq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
    *,
    device: torch.device | None = None,
) -> None:
    """Raise ValueError unless the tensors are an AWQ layer, as `matmul_awq` says."""
    check_tensor("qweight", qweight, ("K", "N / 8"), torch.int32, device=device)
    in_features, words = qweight.shape
    groups, device = _groups(in_features, group_size), qweight.device
    check_tensor("qzeros", qzeros, (groups, words), torch.int32, device=device)
    check_tensor("scales", scales, (groups, words * 8), FLOATS, device=device)


def check_int4(
    quant_method: str,
    qweight: torch.Tensor,
    qzeros: torch.Tensor | None,
    scales: torch.Tensor,
    group_size: int,
    perm_idx: torch.Tensor | None,
    zero_offset: int,
    device: torch.device,
) -> tuple[int, int]:
    """K and N of a layer of `quant_method`; ValueError unless it is one."""
    if quant_method not in QUANT_METHODS:
        raise ValueError(f"quant_method must be one of {QUANT_METHODS}, got {quant_method!r}")
    if quant_method == "gptq":
        check_gptq(qweight, qzeros, scales, group_size, perm_idx, zero_offset, device=device)
        return qweight.shape[0] * 8, qweight.shape[1]
    if qzeros is None:
        raise ValueError("qzeros must be given for quant_method awq, got None")
    if perm_idx is not None:
        raise ValueError("perm_idx must be None for quant_method awq, got a tensor")
    check_awq(qweight, qzeros, scales, group_size, device=device)
    return qweight.shape[0], qweight.shape[1] * 8
