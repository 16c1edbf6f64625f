"""Penalties, masks, log-probabilities and the check for invalid rows."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import RepetitionPenaltyLogitsProcessor

from quire.kernels.sampling import (
    PenaltyRow,
    apply_penalty_rows,
    find_invalid_rows,
    mask_tokens,
    top_log_probabilities,
)

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]


def ids(*tokens: int) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    return np.array(tokens, np.int32)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("penalty", [0.4, 1.3, 10.0])
def test_repetition_equals_transformers(logits: torch.Tensor, penalty: float) -> None:
    history = torch.tensor([[3, 5, 5, 0, 19, 7, 7]])
    expected = logits.clone()
    expected[1:2] = RepetitionPenaltyLogitsProcessor(penalty)(history, logits[1:2].clone())

    row = PenaltyRow(1, 0.0, 0.0, penalty, ids(3, 5, 5, 0), ids(19, 7, 7))
    apply_penalty_rows(logits, [row])

    assert torch.equal(logits, expected)


def test_frequency_and_presence_count_generated_tokens_after_repetition(
    logits: torch.Tensor,
) -> None:
    generated = ids(4, 4, 4, 9)
    expected = logits.double().clone()
    for token in (2, 4, 9):
        expected[2, token] *= 0.5 if expected[2, token] > 0 else 2.0
    counts = torch.bincount(torch.from_numpy(generated), minlength=20)
    expected[2] -= 0.7 * counts + 0.3 * (counts > 0)

    apply_penalty_rows(logits, [PenaltyRow(2, 0.7, 0.3, 2.0, ids(2), generated)])

    torch.testing.assert_close(logits.double(), expected, atol=1e-6, rtol=1e-6)


def test_nothing_generated_yet_changes_nothing(logits: torch.Tensor) -> None:
    expected = logits.clone()

    apply_penalty_rows(logits, [PenaltyRow(0, 2.0, 2.0, 1.0, ids(1, 2), ids())])

    assert torch.equal(logits, expected)


def test_masked_tokens_are_minus_infinity_in_their_row_alone(logits: torch.Tensor) -> None:
    expected = logits.clone()
    expected[1, 4] = expected[1, 19] = -math.inf

    mask_tokens(logits, 1, (4, 19))
    mask_tokens(logits, 0, ())

    assert torch.equal(logits, expected)


@pytest.mark.parametrize("token", [-1, 20])
def test_token_ids_outside_the_vocabulary_are_named(logits: torch.Tensor, token: int) -> None:
    message = rf"token id must be in \[0, 20\), got {token}"
    for row in (
        PenaltyRow(0, 0, 0, 2.0, ids(3, token), ids()),
        PenaltyRow(0, 1, 0, 1, ids(), ids(token)),
    ):
        with pytest.raises(ValueError, match=message):
            apply_penalty_rows(logits, [row])
    with pytest.raises(ValueError, match=message):
        mask_tokens(logits, 0, [1, token])
    with pytest.raises(ValueError, match=message):
        top_log_probabilities(logits, torch.tensor([0, token, 0]), [0, 0, 0])


def test_log_probabilities_are_near_float64_and_in_order(logits: torch.Tensor) -> None:
    expected = logits.double().log_softmax(-1)

    found = top_log_probabilities(logits, torch.tensor([3, 0, 19]), [2, 0, 50])

    chosen = expected[[0, 1, 2], [3, 0, 19]].numpy()
    np.testing.assert_allclose(found.sampled, chosen, atol=1e-6)
    order = expected.argsort(descending=True)
    assert found.token_ids[0].tolist() == order[0, :2].tolist() + [-1] * 48
    assert found.token_ids[1].tolist() == [-1] * 50
    assert found.token_ids[2, :20].tolist() == order[2].tolist()
    values = expected[2, order[2]].numpy()
    np.testing.assert_allclose(found.values[2, :20], values, atol=1e-6)
    assert found.values[0, 2] == -np.inf


def test_equal_logits_come_lowest_id_first_for_every_n() -> None:
    logits = torch.zeros(1, 600)
    logits[0, [100, 500, 300]] = 1.0

    for n in (1, 2, 3, 5, 400):
        found = top_log_probabilities(logits, torch.tensor([0]), [n])
        expected = [100, 300, 500, *[i for i in range(600) if i not in (100, 300, 500)]]
        assert found.token_ids[0].tolist() == expected[:n]


def test_log_probabilities_have_the_same_bits_in_every_batch(
    threads: int, same_bits: SameBits
) -> None:
    logits = 4 * torch.randn(9, 50_001)
    tokens = torch.arange(9)
    full = top_log_probabilities(logits, tokens, [5] * 9)

    for start in range(9):
        part = top_log_probabilities(logits[start:], tokens[start:], [5] * (9 - start))
        assert part.sampled.tobytes() == full.sampled[start:].tobytes()
        assert part.values.tobytes() == full.values[start:].tobytes()
        assert part.token_ids.tolist() == full.token_ids[start:].tolist()


def test_no_rows_have_no_log_probabilities() -> None:
    found = top_log_probabilities(torch.empty(0, 7), torch.empty(0, dtype=torch.int32), [])

    assert (found.sampled.shape, found.token_ids.shape) == ((0,), (0, 0))


def test_rows_with_nan_or_infinity_or_nothing_finite_are_found(logits: torch.Tensor) -> None:
    rows = logits[:1].repeat(6, 1)
    rows[1, 3] = math.nan
    rows[2, 0] = math.inf
    rows[3] = -math.inf
    rows[4, 1:] = -math.inf
    rows[5, 2], rows[5, 3] = math.nan, math.inf

    found = find_invalid_rows(rows)

    assert found.tolist() == [False, True, True, True, False, True]


class _RowBytes(TorchFunctionMode):
    """Records how many bytes apart the rows given to `log_softmax` begin."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.log_softmax:
            self.found.append(args[0].stride(0) * args[0].element_size())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("vocabulary", [1, 2003, 2004])
def test_rows_begin_alike_where_cuda_would_sum_them_differently(vocabulary: int) -> None:
    with _RowBytes() as row_bytes:
        top_log_probabilities(torch.zeros(3, vocabulary), torch.zeros(3), [0] * 3)

    assert [count % 16 for count in row_bytes.found] == [0]


@pytest.mark.parametrize("options", [(0.3, 0.0, 1.0), (0.0, 0.7, 1.3), (-0.21, 0.17, 0.6)])
def test_penalties_are_the_same_without_the_library(
    options: tuple[float, float, float], same_bits: SameBits, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(3)
    rows = [
        PenaltyRow(
            row,
            *options,
            draw.integers(0, 500, row).astype(np.int32),
            draw.integers(0, 500, 300 * row)[::3].astype(np.int32),
        )
        for row in range(4)
    ]
    before = 5 * torch.randn(4, 500, generator=torch.Generator().manual_seed(4))
    compiled, plain = before.clone(), before.clone()

    apply_penalty_rows(compiled, rows)
    monkeypatch.setattr("quire.kernels.sampling.logits.library", lambda: None)
    apply_penalty_rows(plain, rows)

    assert same_bits(compiled, plain)
    assert not same_bits(compiled, before)
