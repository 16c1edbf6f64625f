"""Low-rank adapters (LoRA) of many sequences at once: segmented gather matrix-vector products."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor
from quire.kernels.torch_op import torch_op

MAX_RANK = 256


def _fake(**_: Any) -> None:
    return None


@torch_op(fake=_fake, mutates=("y",))
def sgmv_lora_kernel(
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
    """y[t] += scaling[a] * (B[a] A[a] x[t] + bias[a]), with a the adapter of t's sequence.

    Punica's SGMV (https://arxiv.org/abs/2310.18547) with the formula of PEFT: shrink, then
    expand. Only the first lora_ranks[a] rows of A[a] and columns of B[a] count. Rows without an
    adapter keep their bits and cost nothing. Sums are in fp32; on CUDA A x is rounded to the
    dtype of B in between. A row's bits depend on its own values and its adapter alone.

    Args:
        input: x, [T, K], bfloat16, float16 or float32, contiguous.
        lora_a: [A, R, K] in the dtype of `input`, contiguous; R, the greatest rank, at most 256.
        lora_b: [A, N, R] in the dtype of `input`, contiguous.
        lora_ids: [B] int32, the adapter of each sequence; outside 0..A-1 (by convention -1): none.
        lora_ranks: [A] int32, from 0 to R.
        input_row_offsets: [B + 1] int32, the first row of each sequence, then T.
        y: [T, N] in the dtype of `input`, contiguous: the base layer's result, updated in place.
        scaling: [A] float32, alpha / rank (alpha / sqrt(rank) for rsLoRA); None: 1.
        bias: [A, N] in the dtype of `input`, the bias of B, or None.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("lora_a", lora_a, ("A", "R", "K"), FLOATS, device=input.device)
    _check(input, lora_a, lora_b, (lora_ids, lora_ranks, input_row_offsets), scaling, bias)
    shape = (input.shape[0], lora_b.shape[1])
    check_tensor("y", y, shape, input.dtype, device=input.device)
    if input.is_cuda:
        from quire.kernels.sgmv_lora.kernel import sgmv_lora_kernel_triton as run
    else:
        from quire.kernels.sgmv_lora.reference import sgmv_lora_kernel_reference as run
    run(
        input,
        lora_a,
        lora_b,
        lora_ids,
        lora_ranks,
        input_row_offsets,
        y,
        scaling=scaling,
        bias=bias,
    )


def _fake_qkv(**_: Any) -> None:
    return None


@torch_op(fake=_fake_qkv, mutates=("qkv",))
def sgmv_qkv_lora_kernel(
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
    """`sgmv_lora_kernel` of the q, k and v projections at once, before rope and cache.

    A row of `qkv` is q, then k, then v, as `fused_qk_ragged_rope` and `split_qkv_ragged` take it.
    Each part has a matrix A of its own, as PEFT trains them. A projection that an adapter leaves
    out has zeros in `lora_b` (and `bias`).

    Args:
        input, lora_ids, lora_ranks, input_row_offsets, scaling: as there.
        lora_a: [A, 3, R, K], those of q, k and v, or [A, 1, R, K], one for all three.
        lora_b: [A, N, R], rows in the order of `qkv`'s columns.
        qkv: [T, N], N = q_features + 2 * kv_features, updated in place.
        q_features: columns of q, heads * head size; those of k and v are (N - q_features) / 2.
        bias: [A, N], or None.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("lora_a", lora_a, ("A", "1|3", "R", "K"), FLOATS, device=input.device)
    if lora_a.shape[1] not in (1, 3):
        raise ValueError(f"lora_a must be [A, 1, R, K] or [A, 3, R, K], got {list(lora_a.shape)}")
    # One part has the shape of an adapter of a single layer.
    _check(input, lora_a[:, 0], lora_b, (lora_ids, lora_ranks, input_row_offsets), scaling, bias)
    features = lora_b.shape[1]
    check_tensor("qkv", qkv, (input.shape[0], features), input.dtype, device=input.device)
    check_range("q_features", q_features, 0, features)
    if (features - q_features) % 2:
        raise ValueError(
            f"qkv must have q_features + 2 * kv_features columns, got {features} with "
            f"q_features {q_features}"
        )
    if input.is_cuda:
        from quire.kernels.sgmv_lora.kernel import sgmv_qkv_lora_kernel_triton as run
    else:
        from quire.kernels.sgmv_lora.reference import sgmv_qkv_lora_kernel_reference as run
    run(
        input,
        lora_a,
        lora_b,
        lora_ids,
        lora_ranks,
        input_row_offsets,
        qkv,
        q_features,
        scaling=scaling,
        bias=bias,
    )


def _check(
    input: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    segments: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scaling: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    """What both functions ask of x, adapters and segments (ids, ranks, row offsets)."""
    check_tensor("input", input, ("T", "K"), FLOATS)
    dtype, device = input.dtype, input.device
    adapters, rank, _ = lora_a.shape
    check_tensor(
        "lora_a", lora_a, ("A", "R", input.shape[1]), dtype, device=device, contiguous=False
    )
    check_tensor("lora_b", lora_b, (adapters, "N", rank), dtype, device=device)
    check_range("the greatest rank", rank, 1, MAX_RANK)
    ids, ranks, offsets = segments
    check_tensor("lora_ids", ids, ("B",), torch.int32, device=device)
    check_tensor("lora_ranks", ranks, (adapters,), torch.int32, device=device)
    check_tensor("input_row_offsets", offsets, (len(ids) + 1,), torch.int32, device=device)
    if scaling is not None:
        check_tensor("scaling", scaling, (adapters,), torch.float32, device=device)
    if bias is not None:
        check_tensor("bias", bias, (adapters, lora_b.shape[1]), dtype, device=device)
