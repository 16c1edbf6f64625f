"""LoRA of many sequences: PEFT's formula in float64, exact rows, untouched rows, error texts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.kernels.cases import Case
from quire.kernels.sgmv_lora import sgmv_lora_kernel, sgmv_qkv_lora_kernel
from quire.kernels.sgmv_lora.cases import SMALL_LORAS, SMALL_QKVS, lora_case
from quire.kernels.sgmv_lora.kernel import sgmv_lora_kernel_triton, sgmv_qkv_lora_kernel_triton

CPU = torch.device("cpu")
Lora = Callable[..., None]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [
    pytest.param(sgmv_lora_kernel, id="cpu"),
    pytest.param(sgmv_lora_kernel_triton, id="triton"),
]
QKV_PATHS = [
    pytest.param(sgmv_qkv_lora_kernel, id="cpu"),
    pytest.param(sgmv_qkv_lora_kernel_triton, id="triton"),
]


def inputs_of(case: Case, seed: int = 1) -> dict[str, Any]:
    return case.build(CPU, torch.Generator().manual_seed(seed))


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def adapters_of_rows(inputs: dict[str, Any]) -> list[int]:
    """The adapter of each row, -1 for none."""
    lengths = inputs["input_row_offsets"].diff()
    known = len(inputs["lora_ranks"])
    rows = torch.repeat_interleave(inputs["lora_ids"], lengths).tolist()
    return [adapter if 0 <= adapter < known else -1 for adapter in rows]


def peft_delta(inputs: dict[str, Any], row: int, adapter: int) -> torch.Tensor:
    """(lora_B(lora_A(x)) + bias) * scaling of one row, layers by themselves, in float64."""
    rank = int(inputs["lora_ranks"][adapter])
    x = inputs["input"][row].double()
    a, b = inputs["lora_a"][adapter].double(), inputs["lora_b"][adapter, :, :rank].double()
    if a.ndim == 2:
        delta = b @ (a[:rank] @ x)
    else:
        q = inputs["q_features"]
        kv = (len(b) - q) // 2
        parts = zip(a.expand(3, -1, -1), b.split([q, kv, kv]), strict=True)
        delta = torch.cat([b_part @ (a_part[:rank] @ x) for a_part, b_part in parts])
    if inputs["bias"] is not None:
        delta += inputs["bias"][adapter].double()
    return delta if inputs["scaling"] is None else delta * inputs["scaling"][adapter].double()


def check_against_float64(run: Lora, case: Case, target: str) -> None:
    inputs = inputs_of(case)
    before = inputs[target].clone()

    run(**inputs)

    for row, adapter in enumerate(adapters_of_rows(inputs)):
        expected = before[row].double()
        if adapter >= 0:
            expected = expected + peft_delta(inputs, row, adapter)
        torch.testing.assert_close(
            inputs[target][row].double(), expected, atol=case.tolerance, rtol=0
        )


@pytest.mark.parametrize("case", SMALL_LORAS, ids=lambda case: case.name)
@pytest.mark.parametrize("lora", PATHS)
def test_equals_the_formula_of_peft(lora: Lora, case: Case) -> None:
    check_against_float64(lora, case, "y")


@pytest.mark.parametrize("case", SMALL_QKVS, ids=lambda case: case.name)
@pytest.mark.parametrize("lora", QKV_PATHS)
def test_qkv_equals_three_adapters(lora: Lora, case: Case) -> None:
    check_against_float64(lora, case, "qkv")


@pytest.mark.parametrize("lora", PATHS)
def test_rows_without_an_adapter_keep_their_bits(lora: Lora) -> None:
    inputs = inputs_of(SMALL_LORAS[1])
    inputs["lora_ids"] = int32(-1, 5, -7, 1)
    inputs["y"][:5] = torch.nan
    before = inputs["y"].clone()

    lora(**inputs)

    assert torch.equal(inputs["y"][:5].view(torch.int32), before[:5].view(torch.int32))
    assert not inputs["y"][5:].isnan().any()


@pytest.mark.parametrize("lora", PATHS)
def test_rank_zero_adds_the_bias_alone(lora: Lora) -> None:
    inputs = inputs_of(SMALL_LORAS[1])
    inputs["lora_ranks"] = int32(0, 0)
    before = inputs["y"].clone()

    lora(**inputs)

    scaled = inputs["bias"] * inputs["scaling"][:, None]
    expected = before[5:] + scaled[1]
    torch.testing.assert_close(inputs["y"][5:], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("ranks", [(2, 4), (0, 4)], ids=str)
@pytest.mark.parametrize("lora", PATHS)
def test_an_infinite_input_meets_only_the_ranks_of_its_adapter(
    lora: Lora, ranks: tuple[int, int]
) -> None:
    """Infinity times what is padded with zeros would be NaN."""
    x, y = torch.ones(1, 8), torch.zeros(1, 3)
    x[0, 0] = torch.inf

    lora(x, torch.ones(2, 4, 8), torch.ones(2, 3, 4), int32(0), int32(*ranks), int32(0, 1), y)

    assert y.tolist() == [[torch.inf if ranks[0] else 0.0] * 3]


EXACT_CASES = (
    lora_case((1, 19, 1, 33), (0, 1, -1, 0), (3, 8), (70, 65), torch.float32, with_bias=True),
    lora_case((1, 19, 33), (1, 0, 1), (16, 5), (64, 1100), torch.bfloat16),
)


@pytest.mark.parametrize("case", EXACT_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("lora", PATHS)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    lora: Lora, case: Case, same_bits: SameBits
) -> None:
    inputs = inputs_of(case)
    before = inputs["y"].clone()
    lora(**inputs)
    whole, adapters = inputs["y"], adapters_of_rows(inputs)

    for row in (0, 18, len(whole) - 1):
        alone = inputs | {
            "input": inputs["input"][row : row + 1],
            "y": before[row : row + 1].clone(),
            "lora_ids": int32(adapters[row]),
            "input_row_offsets": int32(0, 1),
        }
        lora(**alone)
        assert same_bits(alone["y"], whole[row : row + 1]), row


@pytest.mark.parametrize("lora", PATHS)
def test_a_rank_has_the_same_bits_beside_a_greater_one(lora: Lora, same_bits: SameBits) -> None:
    """Adapters come and go; those that stay keep their results."""
    inputs = inputs_of(lora_case((2,), (0,), (8, 16), (40, 96), torch.float32))
    narrow = inputs | {
        "lora_a": inputs["lora_a"][:1, :8].contiguous(),
        "lora_b": inputs["lora_b"][:1, :, :8].contiguous(),
        "lora_ranks": inputs["lora_ranks"][:1],
        "y": inputs["y"].clone(),
    }

    lora(**inputs)
    lora(**narrow)

    assert same_bits(narrow["y"], inputs["y"])


@pytest.mark.parametrize("lora", PATHS)
@pytest.mark.parametrize(("ids", "offsets"), [((), (0,)), ((0,), (0, 0))])
def test_no_rows_are_no_work(lora: Lora, ids: tuple[int, ...], offsets: tuple[int, ...]) -> None:
    inputs = inputs_of(SMALL_LORAS[1])
    empty = {"input": inputs["input"][:0], "y": inputs["y"][:0]}

    lora(**inputs | empty | {"lora_ids": int32(*ids), "input_row_offsets": int32(*offsets)})


@pytest.mark.parametrize("lora", PATHS)
def test_rows_of_no_sequence_keep_their_bits(lora: Lora) -> None:
    inputs = inputs_of(SMALL_LORAS[1])
    before = inputs["y"].clone()

    lora(**inputs | {"lora_ids": int32(), "input_row_offsets": int32(0)})

    assert torch.equal(inputs["y"], before)


@pytest.mark.parametrize("lora", QKV_PATHS)
@pytest.mark.parametrize("q_features", [0, 72])
def test_qkv_may_lack_a_part(lora: Lora, q_features: int) -> None:
    inputs = inputs_of(SMALL_QKVS[0]) | {"q_features": q_features}
    before = inputs["qkv"].clone()

    lora(**inputs)

    for row, adapter in enumerate(adapters_of_rows(inputs)):
        if adapter >= 0:
            expected = before[row].double() + peft_delta(inputs, row, adapter)
            torch.testing.assert_close(inputs["qkv"][row].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.ones(4)}, r"input must be \[T, K\], got \[4\]"),
        ({"lora_a": torch.ones(2, 3, 9)}, r"lora_a must be \[A, R, 8\], got \[2, 3, 9\]"),
        ({"lora_a": torch.ones(2, 3, 8).half()}, "lora_a must be of float32, got float16"),
        (
            {"lora_a": torch.ones(2, 8, 3).mT},
            r"lora_a must be contiguous, got strides \[24, 1, 3\]",
        ),
        ({"lora_b": torch.ones(2, 6, 4)}, r"lora_b must be \[2, N, 3\], got \[2, 6, 4\]"),
        (
            {"lora_a": torch.ones(2, 257, 8), "lora_b": torch.ones(2, 6, 257)},
            "the greatest rank must be from 1 to 256, got 257",
        ),
        ({"lora_ids": torch.zeros(2)}, "lora_ids must be of int32, got float32"),
        ({"lora_ranks": int32(3)}, r"lora_ranks must be \[2\], got \[1\]"),
        ({"input_row_offsets": int32(0, 4)}, r"input_row_offsets must be \[3\], got \[2\]"),
        ({"scaling": torch.ones(3)}, r"scaling must be \[2\], got \[3\]"),
        ({"bias": torch.ones(2, 5)}, r"bias must be \[2, 6\], got \[2, 5\]"),
        ({"y": torch.ones(4, 5)}, r"y must be \[4, 6\], got \[4, 5\]"),
        ({"y": torch.ones(6, 4).t()}, r"y must be contiguous, got strides \[1, 4\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "input": torch.ones(4, 8),
        "lora_a": torch.ones(2, 3, 8),
        "lora_b": torch.ones(2, 6, 3),
        "lora_ids": int32(0, 1),
        "lora_ranks": int32(3, 3),
        "input_row_offsets": int32(0, 1, 4),
        "y": torch.zeros(4, 6),
    } | changes
    with pytest.raises(ValueError, match=message):
        sgmv_lora_kernel(**given)
    assert not given["y"].any() or "y" in changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_a": torch.ones(2, 2, 3, 8)}, r"lora_a must be \[A, 1, R, K\] or .*\[2, 2, 3, 8\]"),
        ({"lora_a": torch.ones(2, 3, 8)}, r"lora_a must be \[A, 1\|3, R, K\], got \[2, 3, 8\]"),
        ({"q_features": 7}, "q_features must be from 0 to 6, got 7"),
        ({"q_features": 3}, r"q_features \+ 2 \* kv_features columns, got 6 with q_features 3"),
        ({"qkv": torch.ones(4, 5)}, r"qkv must be \[4, 6\], got \[4, 5\]"),
        ({"lora_ranks": int32(3)}, r"lora_ranks must be \[2\], got \[1\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_qkv_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "input": torch.ones(4, 8),
        "lora_a": torch.ones(2, 3, 3, 8),
        "lora_b": torch.ones(2, 6, 3),
        "lora_ids": int32(0, 1),
        "lora_ranks": int32(3, 3),
        "input_row_offsets": int32(0, 1, 4),
        "qkv": torch.zeros(4, 6),
        "q_features": 2,
    } | changes
    with pytest.raises(ValueError, match=message):
        sgmv_qkv_lora_kernel(**given)
