"""Cases of the fp8 projection into the cache: kinds of scale and of cache in small, and served."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.float8 import FP8
from quire.kernels.matmul_scaled_float8 import FP8_CAPABILITY
from quire.kernels.matmul_scaled_float8.cases import Scaling, scaled_inputs
from quire.kernels.split_qkv_ragged.cases import STEP, empty_caches

PAGE_SIZE = 16
Lengths = tuple[tuple[int, int], ...]


def projection_case(
    heads: tuple[int, int, int],
    in_features: int,
    scaling: Scaling,
    out_type: torch.dtype = torch.bfloat16,
    *,
    lengths: Lengths = STEP,
    with_bias: bool = False,
    is_fp8_cache: bool = False,
) -> Case:
    """A case of `heads` (H, K, D)."""
    num_heads, kv_heads, head_dim = heads
    tokens = sum(new for new, _ in lengths)
    columns = (num_heads + 2 * kv_heads) * head_dim
    stored = FP8 if is_fp8_cache else out_type

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, PAGE_SIZE, device, generator)
        shape = (tokens, columns, in_features)
        x, weight, x_scales, w_scales = scaled_inputs(shape, (scaling, scaling), generator)
        bias = torch.randn(columns, generator=generator).to(device, out_type)
        k_cache, v_cache = empty_caches(num_pages, (kv_heads, head_dim), PAGE_SIZE, stored, device)
        return {
            "x_TK": x.to(device),
            "wqkv_NK": weight.to(device),
            "k_cache": k_cache,
            "v_cache": v_cache,
            "batch": batch,
            "num_heads": num_heads,
            "input_scale": x_scales.to(device),
            "weight_scale": w_scales.to(device),
            "bias_N": bias if with_bias else None,
            "out_type": out_type,
            "k_scale": 0.5 if is_fp8_cache else 1.0,
            "v_scale": 2.0 if is_fp8_cache else 1.0,
        }

    projected = tokens * num_heads * head_dim * out_type.itemsize
    cached = 2 * tokens * kv_heads * head_dim * stored.itemsize
    return Case(
        name=f"{tokens}x{columns}x{in_features}-{scaling}-{str(out_type)[6:]}"
        + "-bias" * with_bias
        + "-fp8-cache" * is_fp8_cache,
        dtype=FP8,
        build=build,
        tolerance={torch.float32: 2e-5, torch.bfloat16: 5e-2}[out_type],
        # A difference in the last bit of the projection may move an fp8 value by one step.
        relative=0.125 if is_fp8_cache else 0.0,
        bytes_moved=(tokens + columns) * in_features + projected + cached,
        flops=2 * tokens * columns * in_features,
    )


def lengths_of(tokens: int) -> Lengths:
    """A decode step of so many contexts, or from 64 tokens on a prefill chunk."""
    return ((1, 255),) * tokens if tokens < 64 else ((tokens, 0),)


OPERATIONS = (
    Operation(
        name="fused_qkv_ragged_matmul_scaled_float8",
        package="fused_qkv_ragged_matmul_scaled_float8",
        small=(
            projection_case((3, 2, 20), 70, "row", torch.float32),
            projection_case((2, 1, 48), 150, "block", torch.float32, with_bias=True),
            projection_case((4, 2, 16), 64, "one", is_fp8_cache=True),
        ),
        served=tuple(
            projection_case(heads, in_features, "row", lengths=lengths_of(tokens))
            for heads, in_features in (
                ((9, 3, 64), 576),
                ((16, 8, 128), 1024),
                ((32, 8, 128), 4096),
            )
            for tokens in (1, 8, 32, 128, 512)
        ),
        compiled=(projection_case((32, 8, 128), 4096, "row", with_bias=True),),
        mutates=("k_cache", "v_cache"),
        min_capability=FP8_CAPABILITY,
    ),
)
