"""Cases of the quantized projections into the cache: GPTQ, AWQ, and mixed GGUF encodings."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation, random_ragged_batch
from quire.kernels.gguf.cases import random_blocks
from quire.kernels.gguf.encodings import ENCODINGS
from quire.kernels.gptq_awq.cases import random_layer
from quire.kernels.split_qkv_ragged.cases import STEP, empty_caches

FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2}
SERVED_HEADS, SERVED_FEATURES = (32, 8, 128), 4096
"""Of an 8B model: H, K, D and C."""


def step_inputs(
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    in_features: int,
    lengths: tuple[tuple[int, int], ...],
    is_fp8: bool,
    device: torch.device,
    generator: torch.Generator,
) -> dict[str, Any]:
    """x, caches, batch and scales of a step."""
    new, old = zip(*lengths, strict=True)
    batch, num_pages = random_ragged_batch(new, old, 16, device, generator)
    stored = FP8 if is_fp8 else dtype
    k_cache, v_cache = empty_caches(num_pages, heads[1:], 16, stored, device)
    x = torch.randn(batch.num_tokens, in_features, generator=generator)
    return {
        "x_TK": x.to(device, dtype),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "batch": batch,
        "num_heads": heads[0],
        "k_scale": 0.5 if is_fp8 else 1.0,
        "v_scale": 2.0 if is_fp8 else 1.0,
    }


def int4_case(
    name: str,
    quant_method: str,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    in_features: int,
    *,
    group_size: int = 32,
    lengths: tuple[tuple[int, int], ...] = STEP,
    is_fp8: bool = False,
) -> Case:
    """A case of `heads` (H, K, D) with a bias; GPTQ in activation order."""
    columns = (heads[0] + 2 * heads[1]) * heads[2]
    is_awq = quant_method == "awq"

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        inputs = step_inputs(dtype, heads, in_features, lengths, is_fp8, device, generator)
        layer = random_layer(columns, in_features, group_size, generator, is_awq=is_awq)
        layer["bias_N"] = torch.randn(columns, generator=generator).to(dtype)
        if not is_awq:
            layer["perm_idx"] = torch.randperm(in_features, generator=generator).int()
        layer = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in layer.items()}
        return inputs | layer | {"quant_method": quant_method}

    return _case(name, dtype, columns, in_features, lengths, 0.5, is_fp8, build)


def gguf_case(
    name: str,
    encodings: tuple[str, str, str],
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    in_features: int,
    *,
    lengths: tuple[tuple[int, int], ...] = STEP,
    is_fp8: bool = False,
) -> Case:
    """A case of `heads` (H, K, D) with the encodings of q, k and v."""
    num_heads, kv_heads, head_dim = heads
    rows = (num_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        inputs = step_inputs(dtype, heads, in_features, lengths, is_fp8, device, generator)
        for part, count, encoding in zip("qkv", rows, encodings, strict=True):
            blocks = random_blocks(count, in_features, encoding, generator)
            inputs[f"{part}_weight"] = blocks.to(device)
            inputs[f"quantization_encoding_{part}"] = encoding
        return inputs

    layouts = [ENCODINGS[encoding] for encoding in encodings]
    stored = sum(
        count * layout.block_size / layout.elements_per_block
        for count, layout in zip(rows, layouts, strict=True)
    )
    return _case(name, dtype, sum(rows), in_features, lengths, stored / sum(rows), is_fp8, build)


def _case(
    name: str,
    dtype: torch.dtype,
    columns: int,
    in_features: int,
    lengths: tuple[tuple[int, int], ...],
    bytes_per_weight: float,
    is_fp8: bool,
    build: Any,
) -> Case:
    tokens = sum(new for new, _ in lengths)
    moved = tokens * (in_features + columns) * dtype.itemsize
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        # A difference in the last bit of the projection may move an fp8 value by one step.
        relative=0.125 if is_fp8 else 0.0,
        bytes_moved=moved + int(columns * in_features * bytes_per_weight),
        flops=2 * tokens * columns * in_features,
    )


def decode_or_prefill(tokens: int) -> tuple[tuple[int, int], ...]:
    return ((1, 255),) * tokens if tokens <= 32 else ((tokens, 0),)


FP32, BF16 = torch.float32, torch.bfloat16
OPERATIONS = (
    Operation(
        name="fused_qkv_ragged_matmul_quantized",
        package="fused_qkv_ragged_matmul_quantized",
        small=(
            int4_case("gptq-fp32", "gptq", FP32, (3, 1, 24), 64),
            int4_case("awq-fp32", "awq", FP32, (2, 1, 24), 96, group_size=-1),
            int4_case("gptq-bf16-fp8-cache", "gptq", BF16, (2, 1, 32), 64, is_fp8=True),
        ),
        served=tuple(
            int4_case(
                f"{method}-{tokens}-tokens-8B",
                method,
                BF16,
                SERVED_HEADS,
                SERVED_FEATURES,
                group_size=128,
                lengths=decode_or_prefill(tokens),
            )
            for method in ("gptq", "awq")
            for tokens in (32, 512)
        ),
        # The launches are those of the matmuls and of `split_qkv_ragged`.
        compiled=(int4_case("gptq-bf16", "gptq", BF16, (4, 1, 64), 512, group_size=128),),
        mutates=("k_cache", "v_cache"),
    ),
    Operation(
        name="unfused_qkv_ragged_matmul_gguf_quantized",
        package="fused_qkv_ragged_matmul_quantized",
        small=(
            gguf_case("fp32", ("Q4_0", "Q4_0", "Q8_0"), FP32, (3, 1, 24), 64),
            gguf_case("bf16", ("Q4_K", "Q4_K", "Q6_K"), BF16, (2, 1, 32), 256),
            gguf_case(
                "bf16-fp8-cache", ("Q5_K", "Q5_K", "Q8_0"), BF16, (2, 1, 32), 256, is_fp8=True
            ),
        ),
        served=tuple(
            gguf_case(
                f"{tokens}-tokens-8B",
                ("Q4_K", "Q4_K", "Q6_K"),
                BF16,
                SERVED_HEADS,
                SERVED_FEATURES,
                lengths=decode_or_prefill(tokens),
            )
            for tokens in (32, 512)
        ),
        compiled=(gguf_case("bf16", ("Q4_K", "Q4_K", "Q6_K"), BF16, (4, 1, 64), 512),),
        mutates=("k_cache", "v_cache"),
    ),
)
