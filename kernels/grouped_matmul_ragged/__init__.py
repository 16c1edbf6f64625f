"""Rows grouped by expert, each group times the matrix of its expert."""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor
from quire.kernels.float8 import scale_blocks
from quire.kernels.torch_op import torch_op

FP8 = torch.float8_e4m3fn


def _fake(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    token_expert_order: torch.Tensor | None,
    **_: Any,
) -> torch.Tensor:
    rows = (hidden_states if token_expert_order is None else token_expert_order).shape[0]
    return hidden_states.new_empty(rows, weight.shape[1])


@torch_op(fake=_fake)
def grouped_matmul_ragged(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    expert_start_indices: torch.Tensor,
    expert_ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    token_expert_order: torch.Tensor | None = None,
    top_k: int = 1,
) -> torch.Tensor:
    """out[m] = W[e] x[m] + bias[e], where e is the expert of row m's group.

    fp8 weights are widened to the dtype of x (which is exact) and summed in fp32 with their
    scales; activations are not quantized. Rows of a group of id -1 become zero. A row's bits
    depend on its own values and its expert alone. Nothing waits for the device: the grid is
    bounded by M and E.

    Args:
        hidden_states: [M, K], bfloat16, float16 or float32, contiguous, in grouped order.
        weight: [E, N, K] in the dtype of `hidden_states` or float8_e4m3fn, contiguous.
        expert_start_indices: [E + 1] int32 and
        expert_ids: [E] int32, both as `moe_create_indices` gives them: groups with rows first.
        bias: [E, N] in the dtype of `hidden_states`, or None.
        weight_scale: for fp8 weights, float32 [E, 1, 1] per expert, [E, N, 1] per output column
            or [E, ceil(N / 128), ceil(K / 128)] per block; a weight is stored * scale.
        token_expert_order: [M] int32 of `moe_create_indices`: `hidden_states` is then [T, K] with
            T * top_k = M, and row m is that of token token_expert_order[m] // top_k.
        top_k: experts per token, with `token_expert_order`.

    Returns:
        [M, N] in the dtype of `hidden_states`, in grouped order.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_grouped(hidden_states, weight, expert_start_indices, expert_ids, bias, weight_scale)
    check_order(hidden_states, token_expert_order, top_k)
    if hidden_states.is_cuda:
        from quire.kernels.grouped_matmul_ragged.kernel import grouped_matmul_ragged_triton as run
    else:
        from quire.kernels.grouped_matmul_ragged.cpu import grouped_matmul_ragged_cpu as run
    return run(
        hidden_states,
        weight,
        expert_start_indices,
        expert_ids,
        bias=bias,
        weight_scale=weight_scale,
        token_expert_order=token_expert_order,
        top_k=top_k,
    )


def _fake_swiglu(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    token_expert_order: torch.Tensor | None,
    **_: Any,
) -> torch.Tensor:
    rows = (hidden_states if token_expert_order is None else token_expert_order).shape[0]
    return hidden_states.new_empty(rows, weight.shape[1] // 2)


@torch_op(fake=_fake_swiglu)
def grouped_matmul_swiglu_ragged(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    expert_start_indices: torch.Tensor,
    expert_ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    token_expert_order: torch.Tensor | None = None,
    top_k: int = 1,
    interleaved: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """`grouped_matmul_ragged` with 2N outputs, gate and up, and their gated activation.

    out = gate * sigmoid(alpha * gate) * (up + up_offset), in fp32 on the fp32 sums (a CPU rounds
    them to the dtype first). The defaults are SwiGLU (https://arxiv.org/abs/2002.05202); GPT-OSS
    has interleaved=True, alpha=1.702, limit=7.0, up_offset=1.0.

    Args:
        hidden_states ... top_k: as there.
        weight: [E, 2N, K], gate in the first N rows and up in the last N; so are bias and scale.
        interleaved: gate is in even rows and up in odd ones instead.
        alpha: factor on the gate inside the sigmoid.
        limit: gate is cut to at most this, up to -limit..limit; None: not cut.
        up_offset: added to up, after `limit`.

    Returns:
        [M, N] in the dtype of `hidden_states`, in grouped order.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_grouped(hidden_states, weight, expert_start_indices, expert_ids, bias, weight_scale)
    check_order(hidden_states, token_expert_order, top_k)
    check_gate(weight, limit)
    if hidden_states.is_cuda:
        from quire.kernels.grouped_matmul_ragged import kernel

        run = kernel.grouped_matmul_swiglu_ragged_triton
    else:
        from quire.kernels.grouped_matmul_ragged import cpu

        run = cpu.grouped_matmul_swiglu_ragged_cpu
    return run(
        hidden_states,
        weight,
        expert_start_indices,
        expert_ids,
        bias=bias,
        weight_scale=weight_scale,
        token_expert_order=token_expert_order,
        top_k=top_k,
        interleaved=interleaved,
        alpha=alpha,
        limit=limit,
        up_offset=up_offset,
    )


def check_grouped(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    expert_start_indices: torch.Tensor,
    expert_ids: torch.Tensor,
    bias: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
) -> None:
    """What both functions ask of rows, matrices and groups."""
    check_tensor("hidden_states", hidden_states, ("M", "K"), FLOATS)
    dtype, device = hidden_states.dtype, hidden_states.device
    shape = ("E", "N", hidden_states.shape[1])
    check_tensor("weight", weight, shape, (dtype, FP8), device=device)
    if 0 in weight.shape:
        raise ValueError(f"weight must have no empty dimension, got {list(weight.shape)}")
    experts, features, _ = weight.shape
    check_tensor(
        "expert_start_indices", expert_start_indices, (experts + 1,), torch.int32, device=device
    )
    check_tensor("expert_ids", expert_ids, (experts,), torch.int32, device=device)
    if bias is not None:
        check_tensor("bias", bias, (experts, features), dtype, device=device)
    if (weight_scale is not None) != (weight.dtype == FP8):
        given = "None" if weight_scale is None else f"one with a weight of {weight.dtype}"
        raise ValueError(f"weight_scale must be given with fp8 weights only, got {given}")
    if weight_scale is not None:
        check_tensor("weight_scale", weight_scale, ("E", "R", "C"), torch.float32, device=device)
        scale_blocks(weight, weight_scale)


def check_order(
    hidden_states: torch.Tensor, token_expert_order: torch.Tensor | None, top_k: int
) -> None:
    if token_expert_order is None:
        check_range("top_k without token_expert_order", top_k, 1, 1)
        return
    pairs = hidden_states.shape[0] * top_k
    check_tensor(
        "token_expert_order",
        token_expert_order,
        (pairs,),
        torch.int32,
        device=hidden_states.device,
    )


def check_gate(weight: torch.Tensor, limit: float | None) -> None:
    if weight.shape[1] % 2:
        raise ValueError(f"weight must be [E, 2N, K], got {list(weight.shape)}")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be greater than 0, got {limit}")
