"""Triton: group norm, one program per sample and group, which reads it three times."""

import torch
import triton
import triton.language as tl

BLOCK = 4096


@triton.jit
def group_norm_kernel(
    x,
    weight,
    bias,
    out,
    epsilon,
    size,
    channel_size,
    channels,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (samples, groups); a group is `channels` channels of `channel_size`, `size` in all."""
    group = tl.program_id(1)
    base = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + group) * size
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(x + base + index, mask=index < size, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / size
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(x + base + index, mask=index < size, other=0.0).to(tl.float32)
        centered = tl.where(index < size, value - mean, 0.0)
        squares += centered * centered
    inverse = 1.0 / tl.sqrt_rn(tl.sum(squares, 0) / size + epsilon)
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < size
        channel = group * channels + index // channel_size
        value = tl.load(x + base + index, mask=mask, other=0.0).to(tl.float32)
        result = (value - mean) * inverse
        result *= tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            result += tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + base + index, result.to(out.dtype.element_ty), mask=mask)


def group_norm_triton(
    x: torch.Tensor,
    num_groups: int,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """As `group_norm`."""
    out = torch.empty_like(x)
    if x.numel():
        size = x[0].numel() // num_groups
        channels = x.shape[1] // num_groups
        block = min(triton.next_power_of_2(size), BLOCK)
        group_norm_kernel[(x.shape[0], num_groups)](
            x,
            weight_C,
            weight_C if bias_C is None else bias_C,
            out,
            epsilon,
            size,
            size // channels,
            channels,
            HAS_BIAS=bias_C is not None,
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 8),
        )
    return out
