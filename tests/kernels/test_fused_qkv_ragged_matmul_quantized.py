"""Quantized projections into the cache: equal to the dense weights' own, written at the slots."""

from collections.abc import Callable
from typing import Any

import gguf
import pytest
import torch

from quire.kernels.cases import Case
from quire.kernels.fused_qkv_ragged_matmul_quantized import (
    fused_qkv_ragged_matmul_quantized,
    unfused_qkv_ragged_matmul_gguf_quantized,
)
from quire.kernels.fused_qkv_ragged_matmul_quantized.cases import gguf_case, int4_case
from quire.kernels.fused_qkv_ragged_matmul_quantized.kernel import (
    fused_qkv_ragged_matmul_quantized_triton,
    unfused_qkv_ragged_matmul_gguf_quantized_triton,
)
from quire.kernels.gptq_awq import dequantize_awq, dequantize_gptq

CPU = torch.device("cpu")
HEADS = (3, 2, 16)
Op = Callable[..., torch.Tensor]
GPTQ = int4_case("gptq", "gptq", torch.float32, HEADS, 64)
AWQ = int4_case("awq", "awq", torch.float32, HEADS, 64)
MIXED = gguf_case("mixed", ("Q4_0", "Q8_0", "Q6_K"), torch.float32, HEADS, 256)


def inputs_of(case: Case, **changes: Any) -> dict[str, Any]:
    return case.build(CPU, torch.Generator().manual_seed(1)) | changes


def check_step(inputs: dict[str, Any], queries: torch.Tensor, expected: torch.Tensor) -> None:
    """Queries returned and rows cached are `expected` [T, (H + 2K) * D]; nothing else is written."""
    num_heads, kv_heads, head_dim = HEADS
    heads = expected.unflatten(1, (-1, head_dim))
    batch = inputs["batch"]
    torch.testing.assert_close(queries.double(), heads[:, :num_heads], atol=1e-5, rtol=1e-5)
    for name, first in (("k_cache", num_heads), ("v_cache", num_heads + kv_heads)):
        rows = inputs[name].transpose(1, 2).flatten(0, 1)
        written = heads[:, first : first + kv_heads]
        torch.testing.assert_close(rows[batch.slots].double(), written, atol=1e-5, rtol=1e-5)
        untouched = torch.ones(len(rows), dtype=torch.bool)
        untouched[batch.slots] = False
        assert rows[untouched].isnan().all()


@pytest.mark.parametrize(
    "project", [fused_qkv_ragged_matmul_quantized, fused_qkv_ragged_matmul_quantized_triton]
)
@pytest.mark.parametrize("case", [GPTQ, AWQ], ids=lambda case: case.name)
def test_int4_equals_its_dense_weights(project: Op, case: Case) -> None:
    inputs = inputs_of(case)
    layer = {name: inputs[name] for name in ("qweight", "qzeros", "scales", "group_size")}
    if case is GPTQ:
        weight = dequantize_gptq(**layer, perm_idx=inputs["perm_idx"])
    else:
        weight = dequantize_awq(**layer)

    queries = project(**inputs)

    dense = inputs["x_TK"].double() @ weight.double().t() + inputs["bias_N"].double()
    check_step(inputs, queries, dense)


@pytest.mark.parametrize(
    "project",
    [unfused_qkv_ragged_matmul_gguf_quantized, unfused_qkv_ragged_matmul_gguf_quantized_triton],
)
def test_gguf_equals_its_dense_weights(project: Op) -> None:
    inputs = inputs_of(MIXED)
    weights = []
    for part in "qkv":
        kind = gguf.GGMLQuantizationType[inputs[f"quantization_encoding_{part}"]]
        weights.append(gguf.quants.dequantize(inputs[f"{part}_weight"].numpy(), kind))
    weight = torch.cat([torch.from_numpy(part) for part in weights])

    queries = project(**inputs)

    check_step(inputs, queries, inputs["x_TK"].double() @ weight.double().t())


@pytest.mark.parametrize(
    "project",
    [unfused_qkv_ragged_matmul_gguf_quantized, unfused_qkv_ragged_matmul_gguf_quantized_triton],
)
def test_encodings_and_heads_follow_from_the_queries(project: Op) -> None:
    case = gguf_case("same", ("Q4_0", "Q4_0", "Q4_0"), torch.float32, HEADS, 64)
    full, short = inputs_of(case), inputs_of(case)
    for name in ("quantization_encoding_k", "quantization_encoding_v", "num_heads"):
        del short[name]

    assert torch.equal(project(**short), project(**full))
    assert torch.equal(short["k_cache"].nan_to_num(), full["k_cache"].nan_to_num())


def refused(project: Op, case: Case, match: str, **changes: Any) -> None:
    """The call is refused and nothing is written."""
    inputs = inputs_of(case, **changes)
    with pytest.raises(ValueError, match=match):
        project(**inputs)
    assert inputs["k_cache"].isnan().all()


def test_wrong_int4_inputs_are_named() -> None:
    project = fused_qkv_ragged_matmul_quantized
    refused(project, GPTQ, r"quant_method must be one of .*, got 'gguf'", quant_method="gguf")
    refused(project, AWQ, "qzeros must be given for quant_method awq, got None", qzeros=None)
    order = torch.arange(64, dtype=torch.int32)
    refused(project, AWQ, "perm_idx must be None for quant_method awq", perm_idx=order)
    refused(project, AWQ, "zero_offset is of GPTQ weights, got 0 with AWQ", zero_offset=0)
    refused(project, GPTQ, "group_size must be one of", group_size=8)
    refused(project, GPTQ, r"qweight must be of \(4 \+ 4\) \* 16 outputs, got 112", num_heads=4)
    refused(project, GPTQ, "num_heads must be at least 0, got -1", num_heads=-1)
    refused(project, GPTQ, r"x_TK must be \[T, 64\], got \[14, 32\]", x_TK=torch.ones(14, 32))
    refused(project, GPTQ, "x_TK must have a row for each .* 14 tokens", x_TK=torch.ones(13, 64))
    refused(project, GPTQ, "k_scale must be 1 unless k_cache is float8", k_scale=0.5)


def test_wrong_gguf_inputs_are_named() -> None:
    project = unfused_qkv_ragged_matmul_gguf_quantized
    refused(
        project, MIXED, "quantization_encoding_k must be one of", quantization_encoding_k="GPTQ"
    )
    refused(
        project,
        MIXED,
        "v_weight must have rows of whole Q5_K blocks of 176 bytes",
        quantization_encoding_v="Q5_K",
    )
    zeros = torch.zeros(32, 34, dtype=torch.uint8)
    refused(project, MIXED, "k_weight must have rows of 256 Q8_0 weights, got 32", k_weight=zeros)
    refused(project, MIXED, r"q_weight must be of \(2 \+ 0\) \* 16 outputs", num_heads=2)
    refused(project, MIXED, "x_TK must be of bfloat16 or", x_TK=torch.ones(14, 256).double())
    refused(project, MIXED, "x_TK must have a row for each", x_TK=torch.ones(13, 256))
    refused(project, MIXED, "v_scale must be positive", v_scale=0.0)
