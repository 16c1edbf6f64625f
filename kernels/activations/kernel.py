"""Triton: activations, one program per row and block of columns, or per row for fp8 scales."""

import torch
import triton
import triton.language as tl

from quire.kernels.activations import coefficients
from quire.kernels.float8 import FP8
from quire.kernels.split_qkv_ragged.kernel import float8_bits

BLOCK = 1024
QUANTIZED_BLOCK = 4096
TANH = tl.constexpr(coefficients.TANH)
TANH_SPLIT = tl.constexpr(coefficients.TANH_SPLIT)
ERFC = tl.constexpr(coefficients.ERFC)
TANH_COUNT = tl.constexpr(len(coefficients.TANH))
ERFC_COUNT = tl.constexpr(len(coefficients.ERFC))
GELU_DOUBLE = tl.constexpr(coefficients.GELU_TANH[0])
GELU_CUBE = tl.constexpr(coefficients.GELU_TANH[1])
SQRT_HALF = tl.constexpr(coefficients.SQRT_HALF)


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, COUNT: tl.constexpr):
    result = tl.zeros_like(x) + COEFFICIENTS[0]
    for i in tl.static_range(1, COUNT):
        result = result * x + COEFFICIENTS[i]
    return result


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh of float32."""
    magnitude = tl.abs(x)
    near = x + x * (x * x) * _polynomial(x * x, TANH, TANH_COUNT)
    far = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    return tl.where(magnitude < TANH_SPLIT, near, tl.where(x < 0.0, -far, far))


@triton.jit
def _gelu(x):
    z = tl.abs(x) * SQRT_HALF
    t = 1.0 / (0.5 * z + 1.0)
    tail = t * tl.exp(_polynomial(t, ERFC, ERFC_COUNT) - z * z)
    return 0.5 * x * tl.where(x > 0.0, 2.0 - tail, tail)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """The activation of float32."""
    if KIND == "silu":
        result = x / (1.0 + tl.exp(-x))
    elif KIND == "gelu":
        result = _gelu(x)
    elif KIND == "gelu_tanh":
        result = x * _sigmoid((x + x * x * x * GELU_CUBE) * GELU_DOUBLE)
    elif KIND == "gelu_quick":
        result = x * _sigmoid(x * 1.702)
    elif KIND == "relu":
        result = tl.where(x < 0.0, 0.0, x)
    elif KIND == "relu2":
        result = tl.where(x < 0.0, 0.0, x * x)
    elif KIND == "tanh":
        result = tanh(x)
    else:
        tl.static_assert(KIND == "sigmoid")
        result = _sigmoid(x)
    return result


@triton.jit
def activation_kernel(x, out, features, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows, blocks of columns)."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < features
    place = tl.program_id(0).to(tl.int64) * features + column
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, activated(value, KIND).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated(gate_up, row, column, features, KIND: tl.constexpr):
    mask = column < features
    source = gate_up + row * 2 * features + column
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + features, mask=mask, other=0.0).to(tl.float32)
    return (activated(gate, KIND) * up).to(gate_up.dtype.element_ty)


@triton.jit
def gated_kernel(gate_up, out, features, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    result = _gated(gate_up, row, column, features, KIND)
    tl.store(out + row * features + column, result, mask=column < features)


@triton.jit
def row_scale(greatest):
    """As `quantize_dynamic_scaled_float8` makes it from the greatest magnitude of a row."""
    bounded = tl.minimum(greatest, 3.4028234663852886e38)
    return tl.maximum(tl.div_rn(bounded, tl.full((), 448.0, tl.float32)), 2.0**-126)


@triton.jit
def magnitude_of(value):
    """NaN does not count."""
    return tl.where(tl.abs(value) <= float("inf"), tl.abs(value), 0.0)


@triton.jit
def scaled_bits(value, scale):
    """The bytes of value / scale in float8_e4m3fn."""
    return float8_bits(tl.div_rn(value, scale + tl.zeros_like(value)))


@triton.jit
def gated_quantized_kernel(
    gate_up,
    out,
    scales,
    features,
    KIND: tl.constexpr,
    IS_DYNAMIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows,). A dynamic scale is found first; the row is then computed once more."""
    row = tl.program_id(0).to(tl.int64)
    if IS_DYNAMIC:
        greatest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, features, BLOCK):
            column = start + tl.arange(0, BLOCK)
            result = _gated(gate_up, row, column, features, KIND).to(tl.float32)
            greatest = tl.maximum(greatest, magnitude_of(result))
        scale = row_scale(tl.max(greatest, 0))
        tl.store(scales + row, scale)
    else:
        scale = tl.load(scales)
    for start in range(0, features, BLOCK):
        column = start + tl.arange(0, BLOCK)
        result = _gated(gate_up, row, column, features, KIND).to(tl.float32)
        place = out + row * features + column
        tl.store(place, scaled_bits(result, scale), mask=column < features)


def activation_triton(x_TF: torch.Tensor, kind: str) -> torch.Tensor:
    """As `activation`."""
    rows, features = x_TF.shape
    out = torch.empty_like(x_TF)
    if out.numel():
        grid = (rows, triton.cdiv(features, BLOCK))
        activation_kernel[grid](x_TF, out, features, kind, BLOCK, num_warps=4)
    return out


def gated_activation_triton(gate_up_T2F: torch.Tensor, kind: str) -> torch.Tensor:
    """As `gated_activation`."""
    rows, features = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out = gate_up_T2F.new_empty(rows, features)
    if out.numel():
        grid = (rows, triton.cdiv(features, BLOCK))
        gated_kernel[grid](gate_up_T2F, out, features, kind, BLOCK, num_warps=4)
    return out


def gated_activation_quantized_triton(
    gate_up_T2F: torch.Tensor, kind: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gated_activation_quantized`."""
    rows, features = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out = gate_up_T2F.new_empty(rows, features, dtype=FP8)
    is_dynamic = scale is None
    scales = gate_up_T2F.new_empty(rows, 1, dtype=torch.float32) if scale is None else scale
    if out.numel():
        block = min(triton.next_power_of_2(features), QUANTIZED_BLOCK)
        gated_quantized_kernel[(rows,)](
            gate_up_T2F,
            out.view(torch.uint8),
            scales,
            features,
            kind,
            is_dynamic,
            block,
            num_warps=min(max(block // 512, 1), 8),
        )
    return out, scales
