"""Matmuls of groups: float64 per row, transformers' experts, exact rows, and error texts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from quire.kernels.cases import Case
from quire.kernels.grouped_matmul_ragged import (
    grouped_matmul_ragged,
    grouped_matmul_swiglu_ragged,
)
from quire.kernels.grouped_matmul_ragged.cases import GPT_OSS, SMALL_MATMULS, grouped_case
from quire.kernels.grouped_matmul_ragged.kernel import (
    grouped_matmul_ragged_triton,
    grouped_matmul_swiglu_ragged_triton,
)
from quire.kernels.linear.tile_plan import cancelling_inputs

CPU = torch.device("cpu")
Matmul = Callable[..., torch.Tensor]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [
    pytest.param(grouped_matmul_ragged, id="cpu"),
    pytest.param(grouped_matmul_ragged_triton, id="triton"),
]
SWIGLU_PATHS = [
    pytest.param(grouped_matmul_swiglu_ragged, id="cpu"),
    pytest.param(grouped_matmul_swiglu_ragged_triton, id="triton"),
]


def inputs_of(case: Case, seed: int = 1) -> dict[str, Any]:
    return case.build(CPU, torch.Generator().manual_seed(seed))


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def expert_of_rows(inputs: dict[str, Any], rows: int) -> list[int]:
    experts = [-1] * rows
    starts = inputs["expert_start_indices"].tolist()
    for expert, start, end in zip(inputs["expert_ids"].tolist(), starts, starts[1:], strict=False):
        experts[start:end] = [expert] * (end - start)
    return experts


def scaled_weight(inputs: dict[str, Any], expert: int) -> torch.Tensor:
    """One matrix in float64; scales element by element, as their formats are defined."""
    weight = inputs["weight"][expert].double()
    scale = inputs["weight_scale"]
    if scale is None:
        return weight
    scale = scale[expert].double()
    row, column = torch.meshgrid(*map(torch.arange, weight.shape), indexing="ij")
    if scale.shape == (1, 1):
        return weight * scale
    if scale.shape == (weight.shape[0], 1):
        return weight * scale[row, 0]
    return weight * scale[row // 128, column // 128]


@pytest.mark.parametrize("case", SMALL_MATMULS, ids=lambda case: case.name)
@pytest.mark.parametrize("matmul", PATHS)
def test_is_near_float64(matmul: Matmul, case: Case) -> None:
    inputs = inputs_of(case)
    actual = matmul(**inputs).double()

    order, x = inputs["token_expert_order"], inputs["hidden_states"].double()
    for row, expert in enumerate(expert_of_rows(inputs, len(actual))):
        source = row if order is None else int(order[row]) // inputs["top_k"]
        expected = torch.zeros(actual.shape[1], dtype=torch.float64)
        if expert >= 0:
            expected = scaled_weight(inputs, expert) @ x[source]
            if inputs["bias"] is not None:
                expected += inputs["bias"][expert].double()
        torch.testing.assert_close(actual[row], expected, atol=case.tolerance, rtol=case.relative)


@pytest.mark.parametrize("matmul", PATHS)
def test_every_fp8_value_is_widened_exactly(matmul: Matmul) -> None:
    """All 256 bit patterns, NaN and subnormals among them, against torch's own cast."""
    stored = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        out = matmul(
            torch.ones(1, 1, dtype=dtype),
            stored[None, :, None],
            int32(0, 1),
            int32(0),
            weight_scale=torch.ones(1, 1, 1),
        )

        torch.testing.assert_close(out[0], stored.to(dtype), rtol=0, atol=0, equal_nan=True)


def gpt_oss_experts(experts: int, columns: int, features: int) -> GptOssExperts:
    config = GptOssConfig(
        hidden_size=columns, intermediate_size=features, num_local_experts=experts
    )
    config._experts_implementation = "eager"
    module = GptOssExperts(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("matmul", SWIGLU_PATHS)
def test_the_clamped_gate_equals_gpt_oss(matmul: Matmul) -> None:
    """Weights of standard deviation 1, so that many values are beyond the limit."""
    module = gpt_oss_experts(2, 24, 20)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))

    out = matmul(
        x,
        module.gate_up_proj.mT.contiguous(),
        int32(0, 2, 3),
        int32(0, 1),
        bias=module.gate_up_proj_bias,
        **GPT_OSS,
    )

    sums = torch.stack([row @ module.gate_up_proj[e] for row, e in zip(x, (0, 0, 1), strict=True)])
    sums += module.gate_up_proj_bias[[0, 0, 1]]
    assert (sums.abs() > module.limit).any()
    torch.testing.assert_close(out, module._apply_gate(sums), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("matmul", SWIGLU_PATHS)
def test_plain_gate_equals_silu_times_up(matmul: Matmul, interleaved: bool) -> None:
    inputs = inputs_of(grouped_case(4, 2, (3, 34, 40), torch.float32))
    gate_up = grouped_matmul_ragged(**inputs).double()
    gate, up = gate_up.chunk(2, -1)
    if interleaved:
        gate, up = gate_up[:, ::2], gate_up[:, 1::2]

    out = matmul(**inputs, interleaved=interleaved)

    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


EXACT_CASES = (
    grouped_case(40, 2, (3, 70, 65), torch.float32),
    grouped_case(70, 2, (2, 34, 96), torch.bfloat16, with_bias=True),
    grouped_case(40, 2, (3, 34, 130), torch.bfloat16, fp8_scale="block"),
)


@pytest.mark.parametrize("case", EXACT_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("matmul", [*PATHS, *SWIGLU_PATHS])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    matmul: Matmul, case: Case, same_bits: SameBits
) -> None:
    inputs = inputs_of(case)
    whole = matmul(**inputs)
    experts = expert_of_rows(inputs, len(whole))

    for row in (0, len(whole) // 2, len(whole) - 1):
        alone = inputs | {
            "hidden_states": inputs["hidden_states"][row : row + 1],
            "expert_start_indices": int32(0, *[1] * len(inputs["expert_ids"])),
            "expert_ids": int32(experts[row], *[-1] * (len(inputs["expert_ids"]) - 1)),
        }
        assert same_bits(matmul(**alone), whole[row : row + 1]), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("features", "columns"), [(6, 35), (512, 704), (96, 2880)])
def test_cpu_rows_are_exact_where_every_sum_is_rounding_error(
    features: int, columns: int, dtype: torch.dtype, threads: int, same_bits: SameBits
) -> None:
    """With exact sums of zero another order of summation shows in nearly every element."""
    x, weight = cancelling_inputs(40, features, columns, dtype)
    bounds = int32(0, 40)
    whole = grouped_matmul_ragged(x, weight[None], bounds, int32(0))

    for row in (0, 1, 17, 31, 32, 39):
        alone = grouped_matmul_ragged(x[row : row + 1], weight[None], int32(0, 1), int32(0))
        assert same_bits(alone, whole[row : row + 1]), row


@pytest.mark.parametrize("matmul", [*PATHS, *SWIGLU_PATHS])
def test_no_rows_give_no_rows(matmul: Matmul) -> None:
    out = matmul(torch.empty(0, 8), torch.ones(2, 6, 8), int32(0, 0, 0), int32(-1, -1))

    assert out.shape in ((0, 6), (0, 3))


@pytest.mark.parametrize("matmul", PATHS)
def test_rows_of_no_expert_are_zero_even_if_all_experts_have_rows(matmul: Matmul) -> None:
    out = matmul(torch.ones(3, 8), torch.ones(2, 6, 8), int32(0, 1, 2), int32(0, 1))

    assert out.sum(1).tolist() == [48.0, 48.0, 0.0]


FP8_WEIGHT = torch.ones(2, 6, 8).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_states": torch.ones(8)}, r"hidden_states must be \[M, K\], got \[8\]"),
        ({"weight": torch.ones(2, 6, 7)}, r"weight must be \[E, N, 8\], got \[2, 6, 7\]"),
        ({"weight": torch.ones(2, 6, 8).half()}, "weight must be of float32 or float8_e4m3fn"),
        ({"weight": torch.ones(2, 0, 8)}, r"weight must have no empty dimension, got \[2, 0, 8\]"),
        (
            {"expert_start_indices": int32(0, 3)},
            r"expert_start_indices must be \[3\], got \[2\]",
        ),
        ({"expert_ids": torch.ones(2)}, "expert_ids must be of int32, got float32"),
        ({"bias": torch.ones(2, 5)}, r"bias must be \[2, 6\], got \[2, 5\]"),
        ({"weight": FP8_WEIGHT}, "weight_scale must be given with fp8 weights only, got None"),
        (
            {"weight_scale": torch.ones(2, 1, 1)},
            "weight_scale must be given with fp8 weights only, got one with .*float32",
        ),
        (
            {"weight": FP8_WEIGHT, "weight_scale": torch.ones(2, 2, 1)},
            r"weight_scale must be \[2, 1, 1\] or \[2, 6, 1\], got \[2, 2, 1\]",
        ),
        (
            {"weight": FP8_WEIGHT, "weight_scale": torch.ones(1, 1, 1)},
            r"weight_scale must be \[2, 1, 1\] or .*, got \[1, 1, 1\]",
        ),
        ({"top_k": 2}, "top_k without token_expert_order must be from 1 to 1, got 2"),
        (
            {"token_expert_order": int32(0, 1, 2), "top_k": 2},
            r"token_expert_order must be \[6\], got \[3\]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "hidden_states": torch.ones(3, 8),
        "weight": torch.ones(2, 6, 8),
        "expert_start_indices": int32(0, 1, 3),
        "expert_ids": int32(0, 1),
    } | changes
    for matmul in (grouped_matmul_ragged, grouped_matmul_swiglu_ragged):
        with pytest.raises(ValueError, match=message):
            matmul(**given)


def test_wrong_gates_are_named() -> None:
    starts, ids = int32(0, 3), int32(0)
    with pytest.raises(ValueError, match=r"weight must be \[E, 2N, K\], got \[1, 5, 8\]"):
        grouped_matmul_swiglu_ragged(torch.ones(3, 8), torch.ones(1, 5, 8), starts, ids)
    with pytest.raises(ValueError, match="limit must be greater than 0, got 0"):
        grouped_matmul_swiglu_ragged(torch.ones(3, 8), torch.ones(1, 6, 8), starts, ids, limit=0.0)
