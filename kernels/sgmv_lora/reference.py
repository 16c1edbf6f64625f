"""LoRA of many sequences in plain torch: the definition of correct, and the CPU path."""

from itertools import pairwise

import torch

from quire.kernels.grouped_matmul_ragged.cpu import exact_linear


def sgmv_lora_kernel_reference(
    input: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    lora_ids: torch.Tensor,
    lora_ranks: torch.Tensor,
    input_row_offsets: torch.Tensor,
    y: torch.Tensor,
    *,
    scaling: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """As `sgmv_lora_kernel`; `lora_a`, `lora_b`, `y` and `bias` may be views."""
    ranks, bounds = lora_ranks.tolist(), input_row_offsets.tolist()
    for adapter, (start, end) in zip(lora_ids.tolist(), pairwise(bounds), strict=True):
        if not 0 <= adapter < len(ranks) or start == end:
            continue
        rank = ranks[adapter]
        rows = input[start:end].float()
        low = _product(rows, lora_a[adapter, :rank])
        delta = _product(low, lora_b[adapter, :, :rank])
        if bias is not None:
            delta = delta + bias[adapter].float()
        if scaling is not None:
            delta = delta * scaling[adapter]
        y[start:end] = (y[start:end].float() + delta).to(y.dtype)


def sgmv_qkv_lora_kernel_reference(
    input: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    lora_ids: torch.Tensor,
    lora_ranks: torch.Tensor,
    input_row_offsets: torch.Tensor,
    qkv: torch.Tensor,
    q_features: int,
    *,
    scaling: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """As `sgmv_qkv_lora_kernel`."""
    kv_features = (qkv.shape[1] - q_features) // 2
    ends = (q_features, q_features + kv_features, qkv.shape[1])
    for part, (start, end) in enumerate(pairwise((0, *ends))):
        sgmv_lora_kernel_reference(
            input,
            lora_a[:, part % lora_a.shape[1]],
            lora_b[:, start:end],
            lora_ids,
            lora_ranks,
            input_row_offsets,
            qkv[:, start:end],
            scaling=scaling,
            bias=None if bias is None else bias[:, start:end],
        )


def _product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x W^T in float32."""
    if 0 in matrix.shape:
        return x.new_zeros(x.shape[0], matrix.shape[0])
    return exact_linear(x, matrix.float())
