"""Projections into the cache: near float64, and nothing but a linear and a split."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from quire.kernels.cases import Case, Operation
from quire.kernels.fused_qkv_ragged_matmul.cases import OPERATIONS, projection_case
from quire.kernels.linear.kernel import linear_triton
from quire.kernels.linear.reference import linear_reference
from quire.kernels.split_qkv_ragged.cases import one_token_contexts

CPU = torch.device("cpu")
PARTS = {"qkv": OPERATIONS[0], "kv": OPERATIONS[1], "k": OPERATIONS[2]}
PATHS = ["cpu", "triton"]
CASES = [
    pytest.param(parts, case, id=f"{operation.name}-{case.name}")
    for parts, operation in PARTS.items()
    for case in operation.small
    if "fp8" not in case.name
]


def path_of(operation: Operation, path: str) -> Callable[..., torch.Tensor | None]:
    return operation.function() if path == "cpu" else operation.triton()


def written(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[T, K * D]."""
    page_size = cache.shape[2]
    return cache[slots // page_size, :, slots % page_size].flatten(1)


def projected(operation: Operation, path: str, inputs: dict[str, Any]) -> torch.Tensor:
    """The rows of the projection, put together again from q and the caches."""
    q = path_of(operation, path)(**inputs)
    parts = [] if q is None else [q.flatten(1)]
    slots = inputs["batch"].slots
    return torch.cat((*parts, *(written(inputs[name], slots) for name in operation.mutates)), 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("parts", "case"), CASES)
def test_is_near_float64(parts: str, case: Case, path: str) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(1))

    rows = projected(PARTS[parts], path, inputs)

    assert rows.dtype == case.dtype
    expected = inputs["x_TK"].double() @ inputs[f"w{parts}_NK"].double().t()
    bias = inputs.get("bias_N")
    expected += 0 if bias is None else bias.double()
    torch.testing.assert_close(rows.double(), expected, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("parts", "case"), CASES)
def test_has_the_bits_of_the_linear_op(parts: str, case: Case, path: str) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))
    linear = linear_triton if path == "triton" else linear_reference

    rows = projected(PARTS[parts], path, inputs)

    assert torch.equal(rows, linear(inputs["x_TK"], inputs[f"w{parts}_NK"], inputs.get("bias_N")))


@pytest.mark.parametrize("parts", PARTS)
def test_a_token_alone_has_the_bits_it_has_in_a_batch(parts: str) -> None:
    inputs = PARTS[parts].small[0].build(CPU, torch.Generator().manual_seed(3))
    batch, tokens = inputs["batch"], len(inputs["x_TK"])
    together = projected(PARTS[parts], "triton", inputs)
    for rows in (slice(0, 1), slice(tokens - 3, tokens), slice(0, 0)):
        alone = {
            "x_TK": inputs["x_TK"][rows],
            "batch": one_token_contexts(batch.positions[rows], batch.slots[rows]),
        }
        assert torch.equal(projected(PARTS[parts], "triton", inputs | alone), together[rows])


def test_keys_alone_are_scaled() -> None:
    case = projection_case("", torch.float32, (0, 1, 16), 8, "k", is_fp8=True)
    inputs = case.build(CPU, torch.Generator().manual_seed(4))

    PARTS["k"].function()(**inputs)

    keys = inputs["x_TK"] @ inputs["wk_NK"].t()
    expected = (keys / inputs["k_scale"]).to(torch.float8_e4m3fn)
    stored = written(inputs["k_cache"].view(torch.uint8), inputs["batch"].slots)
    assert torch.equal(stored, expected.view(torch.uint8))


WRONG: Sequence[tuple[str, dict[str, Any], str]] = [
    ("qkv", {"wqkv_NK": torch.zeros(139, 65)}, r"wqkv_NK must be \[140, 65\], got \[139, 65\]"),
    ("qkv", {"wqkv_NK": torch.zeros(65, 140).t()}, "wqkv_NK must be contiguous"),
    ("qkv", {"bias_N": torch.zeros(100)}, r"bias_N must be \[140\], got \[100\]"),
    ("qkv", {"num_heads": -1}, "num_heads must be at least 0, got -1"),
    ("qkv", {"v_cache": torch.zeros(1, 2, 16, 20)}, r"v_cache must be \[\d+, 2, 16, 20\], got"),
    ("kv", {"wkv_NK": torch.zeros(80, 65).half()}, "wkv_NK must be of float32, got float16"),
    ("kv", {"v_scale": 3.0}, "v_scale must be 1 unless v_cache is float8_e4m3fn, got 3.0"),
    ("k", {"wk_NK": torch.zeros(80, 65)}, r"wk_NK must be \[40, 65\], got \[80, 65\]"),
    ("k", {"k_scale": 3.0}, "k_scale must be 1 unless k_cache is float8_e4m3fn, got 3.0"),
    ("k", {"x_TK": torch.zeros(13, 65)}, "x_TK must have a row for each .* 14 tokens, got 13"),
    ("k", {"x_TK": torch.zeros(14, 65).int()}, "x_TK must be of .* got int32"),
    ("k", {"x_TK": torch.zeros(65, 14).t()}, "x_TK must be contiguous"),
]


@pytest.mark.parametrize(("parts", "change", "message"), WRONG)
def test_wrong_inputs_are_named(parts: str, change: dict[str, Any], message: str) -> None:
    inputs = PARTS[parts].small[0].build(CPU, torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match=message):
        PARTS[parts].function()(**inputs | change)
    assert inputs["k_cache"].isnan().all()
