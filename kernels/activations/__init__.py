"""Activations of feed-forward blocks: plain, gated, and gated with an fp8 result."""

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.float8 import FP8, check_scale
from quire.kernels.torch_op import torch_op

KINDS = ("silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2", "tanh", "sigmoid")
"""x * sigmoid(x); x * Phi(x); GELU by tanh and by sigmoid(1.702 x) (Hendrycks and Gimpel 2016,
https://arxiv.org/abs/1606.08415); max(x, 0) and its square; tanh(x); 1 / (1 + exp(-x))."""


def _fake(x_TF: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.empty_like(x_TF)


@torch_op(fake=_fake)
def activation(x_TF: torch.Tensor, kind: str) -> torch.Tensor:
    """Apply an activation; fp32 inside, rounded once. An element's bits depend on it alone.

    Args:
        x_TF: [T, F], bfloat16, float16 or float32, contiguous.
        kind: one of `KINDS`.

    Returns:
        [T, F] in the dtype of x.

    Raises:
        ValueError: a shape, dtype or kind outside the above.
    """
    check_tensor("x_TF", x_TF, ("T", "F"), FLOATS)
    _check_kind(kind)
    if x_TF.is_cuda:
        from quire.kernels.activations.kernel import activation_triton as run
    else:
        from quire.kernels.activations.cpu import activation_cpu as run
    return run(x_TF, kind)


def _fake_gated(gate_up_T2F: torch.Tensor, kind: str) -> torch.Tensor:
    return gate_up_T2F.new_empty(gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2)


@torch_op(fake=_fake_gated)
def gated_activation(gate_up_T2F: torch.Tensor, kind: str) -> torch.Tensor:
    """activation(gate) * up, fp32 inside, rounded once (Shazeer 2020, arXiv 2002.05202).

    With "silu" it means what `swish_glu` means. An element's bits depend on its gate and up alone.

    Args:
        gate_up_T2F: [T, 2F], gate in the first F columns, up in the last F; bfloat16, float16
            or float32, contiguous.
        kind: one of `KINDS`.

    Returns:
        [T, F] in the dtype of `gate_up_T2F`.

    Raises:
        ValueError: a shape, dtype or kind outside the above.
    """
    _check_gate_up(gate_up_T2F, kind)
    if gate_up_T2F.is_cuda:
        from quire.kernels.activations.kernel import gated_activation_triton as run
    else:
        from quire.kernels.activations.cpu import gated_activation_cpu as run
    return run(gate_up_T2F, kind)


def _fake_quantized(
    gate_up_T2F: torch.Tensor, kind: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = gate_up_T2F.shape
    scales = gate_up_T2F.new_empty(rows, 1, dtype=torch.float32) if scale is None else scale.clone()
    return gate_up_T2F.new_empty(rows, columns // 2, dtype=FP8), scales


@torch_op(fake=_fake_quantized)
def gated_activation_quantized(
    gate_up_T2F: torch.Tensor, kind: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gated_activation`, then quantization to fp8, in one pass and with the same bits.

    Args:
        gate_up_T2F: as of `gated_activation`, F at least 1.
        kind: one of `KINDS`.
        scale: one float32 on the device, as of `quantize_static_scaled_float8`, or None for a
            scale per row, as of `quantize_dynamic_scaled_float8`.

    Returns:
        [T, F] of float8_e4m3fn, and its scales: float32 [T, 1], or `scale` itself.

    Raises:
        ValueError: a shape, dtype, device or kind outside the above.
    """
    _check_gate_up(gate_up_T2F, kind)
    if gate_up_T2F.shape[1] == 0:
        raise ValueError(f"gate_up_T2F must have columns, got {list(gate_up_T2F.shape)}")
    if scale is not None:
        check_scale("scale", scale, gate_up_T2F.device)
    if gate_up_T2F.is_cuda:
        from quire.kernels.activations.kernel import gated_activation_quantized_triton as run
    else:
        from quire.kernels.activations.cpu import gated_activation_quantized_cpu as run
    return run(gate_up_T2F, kind, scale)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def _check_gate_up(gate_up_T2F: torch.Tensor, kind: str) -> None:
    check_tensor("gate_up_T2F", gate_up_T2F, ("T", "2F"), FLOATS)
    if gate_up_T2F.shape[1] % 2:
        raise ValueError(f"gate_up_T2F must be [T, 2F], got {list(gate_up_T2F.shape)}")
    _check_kind(kind)
