"""Cases of the projections into the cache: with and without queries, values and fp8."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.split_qkv_ragged.cases import STEP, empty_caches

FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2}


def projection_case(
    name: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    in_features: int,
    parts: str,
    *,
    lengths: tuple[tuple[int, int], ...] = STEP,
    with_bias: bool = False,
    is_fp8: bool = False,
) -> Case:
    """A case of `heads` (H, K, D) for the op that projects `parts`: qkv, kv or k."""
    num_heads, kv_heads, head_dim = heads
    tokens = sum(new for new, _ in lengths)
    columns = sum({"q": num_heads, "k": kv_heads, "v": kv_heads}[part] for part in parts) * head_dim

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new, old = zip(*lengths, strict=True)
        batch, num_pages = random_ragged_batch(new, old, 16, device, generator)
        x = torch.randn(tokens, in_features, generator=generator)
        weight = torch.randn(columns, in_features, generator=generator) / in_features**0.5
        stored = FP8 if is_fp8 else dtype
        k_cache, v_cache = empty_caches(num_pages, (kv_heads, head_dim), 16, stored, device)
        inputs = {
            "x_TK": x.to(device, dtype),
            f"w{parts}_NK": weight.to(device, dtype),
            "k_cache": k_cache,
            "batch": batch,
            "k_scale": 0.5 if is_fp8 else 1.0,
        }
        if "v" in parts:
            inputs |= {"v_cache": v_cache, "v_scale": 2.0 if is_fp8 else 1.0}
        if "q" in parts:
            bias = torch.randn(columns, generator=generator).to(device, dtype)
            inputs |= {"num_heads": num_heads, "bias_N": bias if with_bias else None}
        return inputs

    moved = tokens * (in_features + columns) + columns * (in_features + with_bias)
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        # A difference in the last bit of the projection may move an fp8 value by one step.
        relative=0.125 if is_fp8 else 0.0,
        bytes_moved=moved * dtype.itemsize,
        flops=2 * tokens * columns * in_features,
    )


def _operation(name: str, parts: str) -> Operation:
    return Operation(
        name=name,
        package="fused_qkv_ragged_matmul",
        small=(
            projection_case("fp32", torch.float32, (3, 2, 20), 65, parts),
            projection_case("bf16-bias", torch.bfloat16, (4, 1, 32), 48, parts, with_bias=True),
            projection_case("bf16-fp8-cache", torch.bfloat16, (2, 1, 32), 32, parts, is_fp8=True),
        ),
        served=tuple(
            projection_case(
                f"{tokens}-tokens-8B",
                torch.bfloat16,
                (32, 8, 128),
                4096,
                parts,
                lengths=((1, 255),) * tokens if tokens <= 32 else ((tokens, 0),),
            )
            for tokens in (32, 512)
        ),
        # The launches are those of `linear` and `split_qkv_ragged`, but for rows without values.
        compiled=(projection_case("bf16", torch.bfloat16, (14, 2, 64), 896, parts, is_fp8=True),),
        mutates=("k_cache", "v_cache") if "v" in parts else ("k_cache",),
    )


OPERATIONS = (
    _operation("fused_qkv_ragged_matmul", "qkv"),
    _operation("matmul_kv_cache_ragged", "kv"),
    _operation("matmul_k_cache_ragged", "k"),
)
