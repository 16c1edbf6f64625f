"""Penalties, counts, bias, masks and greedy choice on the device: oracles of transformers, numpy
and torch, free slots, and error texts."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from quire.kernels.logits_processing import (
    apply_logit_bias,
    apply_penalties_to_logits,
    apply_token_bitmask,
    greedy_with_logprobs,
    kernel,
    logits_soft_cap,
    scatter_set_constant,
    update_frequency_data,
)
from quire.kernels.sampling import PenaltyRow, apply_penalty_rows

SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
Run = Callable[..., Any]


def paths(function: Run) -> list[Any]:
    triton = getattr(kernel, f"{function.__name__}_triton")
    return [pytest.param(function, id="cpu"), pytest.param(triton, id="triton")]


def int32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(3, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("apply", paths(apply_penalties_to_logits))
def test_repetition_equals_transformers(apply: Run, logits: torch.Tensor) -> None:
    history = [[3, 5, 0, 19], [7], []]
    expected = logits.clone()
    for row, tokens in enumerate(history[:2]):
        processor = RepetitionPenaltyLogitsProcessor(1.3 + row)
        expected[row] = processor(torch.tensor([tokens]), logits[row : row + 1].clone())[0]
    data = int32(*((token, 0) for token in (*history[0], -1, *history[1])))

    apply(logits, data, int32(0, 5, 6, 6), repetition_penalty=torch.tensor([1.3, 2.3, 9.0]))

    assert torch.equal(logits, expected)


@pytest.mark.parametrize("apply", paths(apply_penalties_to_logits))
def test_penalties_are_those_of_the_host_side(apply: Run, logits: torch.Tensor) -> None:
    prompt, generated = np.array([2, 4, 4], np.int32), np.array([4, 4, 4, 9], np.int32)
    expected = logits.clone()
    apply_penalty_rows(
        expected, [PenaltyRow(row, 0.7, 0.3, 2.0, prompt, generated) for row in (0, 2)]
    )
    entries = ((2, 0), (4, 3), (9, 1), (-1, 5), (20, 8), (2**31 - 1, 1))

    options = {"frequency_penalty": 0.7, "presence_penalty": 0.3, "repetition_penalty": 2.0}
    apply(logits, int32(*entries, *entries), int32(0, 6, 6, 12), **options)

    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("update", paths(update_frequency_data))
def test_counts_are_those_of_a_counter(update: Run) -> None:
    """Rows of unequal room; the second has room for one token alone."""
    data, offsets = torch.full((14, 2), -1, dtype=torch.int32), int32(0, 8, 9, 14)
    data[:, 1] = 77  # of a free slot, whatever it held
    streams = ([5, 5, 9, 0, 5, 9], [4, 6, 4, 6, 6, 4], [-1, 3, 3, -5, 3, 2**31 - 1])
    for tokens in zip(*streams, strict=True):
        update(data, offsets, int32(*tokens))

    kept = (streams[0], [4, 4, 4], [3, 3, 3, 2**31 - 1])
    for row, tokens in enumerate(kept):
        entries = data[offsets[row] : offsets[row + 1]]
        used = entries[entries[:, 0] >= 0].tolist()
        assert used == [list(item) for item in Counter(tokens).items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scatter", paths(scatter_set_constant))
def test_scatter_sets_what_is_inside(scatter: Run, dtype: torch.dtype) -> None:
    data = torch.randn(4, 7).to(dtype)
    inside = [(0, 0), (3, 6), (1, 2), (1, 2)]
    expected = data.clone()
    for row, column in inside:
        expected[row, column] = -1.3

    outside = [(-1, 0), (4, 0), (0, -1), (0, 7), (-(2**31), 2**31 - 1)]
    scatter(data, int32(*inside, *outside), -1.3)

    assert torch.equal(data, expected)


def unpacked(bitmask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """bool [B, V] of a bitmask, tokens beyond it masked; numpy's idea of bits."""
    bits = np.unpackbits(bitmask.numpy().view(np.uint8), axis=1, bitorder="little")
    wide = np.zeros((len(bits), max(vocabulary, bits.shape[1])), dtype=bool)
    wide[:, : bits.shape[1]] = bits
    return torch.from_numpy(wide[:, :vocabulary])


@pytest.mark.parametrize(("vocabulary", "words"), [(1, 1), (97, 4), (100, 3), (5000, 157), (33, 5)])
@pytest.mark.parametrize("apply", paths(apply_token_bitmask))
def test_bitmask_equals_numpys_bits(
    apply: Run, vocabulary: int, words: int, same_bits: SameBits
) -> None:
    draw = np.random.default_rng(2)
    bitmask = torch.from_numpy(draw.integers(-(2**31), 2**31, (3, words)).astype(np.int32))
    logits = torch.randn(3, vocabulary)
    expected = logits.masked_fill(~unpacked(bitmask, vocabulary), -math.inf)

    some = logits.clone()
    apply(some, bitmask, int32(2, -1, 3, 2))
    apply(logits, bitmask)

    assert same_bits(logits, expected)
    assert same_bits(some[2], expected[2])
    assert not some[:2].isinf().any()


@pytest.mark.parametrize("apply", paths(apply_logit_bias))
def test_bias_is_added_to_its_tokens(apply: Run, logits: torch.Tensor) -> None:
    expected = logits.clone()
    expected[0, 3] += 1.5
    expected[0, 19] -= 100.0
    expected[2, 3] += 0.25

    bias = torch.tensor([1.5, -100.0, 9.0, 9.0, 0.25])
    apply(logits, int32(3, 19, -1, 20, 3), bias, int32(0, 4, 4, 5))

    assert torch.equal(logits, expected)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's, in the interpreter
@pytest.mark.parametrize("cap", [30.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("soft_cap", paths(logits_soft_cap))
def test_soft_cap_equals_torch_in_float64(soft_cap: Run, dtype: torch.dtype, cap: float) -> None:
    logits = torch.cat((torch.logspace(-6, 4, 300), -torch.logspace(-6, 4, 300)))[None].to(dtype)

    capped = soft_cap(logits, cap)

    assert capped.dtype == dtype
    expected = cap * torch.tanh(logits.double() / cap)
    rtol = 1e-6 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(capped.double(), expected, atol=0, rtol=rtol)


@pytest.mark.parametrize("greedy", paths(greedy_with_logprobs))
def test_greedy_takes_the_lowest_of_the_best_and_its_log_probability(greedy: Run) -> None:
    logits = (
        (4 * torch.randn(5, 9000, generator=torch.Generator().manual_seed(3))).bfloat16().float()
    )
    logits[1, [8999, 17, 4096]] = 40.0
    logits[2, 1:] = -math.inf
    logits[3] = 1e30
    logits[4, :8999] = -math.inf

    tokens, log_probabilities = greedy(logits)

    expected = logits.double().log_softmax(-1)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == [int(logits[0].argmax()), 17, 0, 0, 8999]
    torch.testing.assert_close(log_probabilities.double(), expected.amax(-1), atol=2e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered")
@pytest.mark.parametrize("greedy", paths(greedy_with_logprobs))
def test_greedy_rows_of_nan_leave_the_others_alone(greedy: Run, same_bits: SameBits) -> None:
    logits = torch.randn(4, 50)
    tokens, log_probabilities = greedy(logits)
    bad = logits.clone()
    bad[1], bad[2] = math.nan, -math.inf

    found, found_log_probabilities = greedy(bad)

    assert found[[0, 3]].tolist() == tokens[[0, 3]].tolist()
    assert same_bits(found_log_probabilities[[0, 3]], log_probabilities[[0, 3]])
    assert all(0 <= token < 50 for token in found.tolist())


@pytest.mark.parametrize("path", [0, 1])
def test_nothing_changes_nothing(path: int, logits: torch.Tensor) -> None:
    expected, none, offsets = logits.clone(), int32(), int32(0, 0, 0, 0)

    def run(function: Run, *inputs: Any) -> Any:
        return paths(function)[path].values[0](*inputs)

    run(apply_penalties_to_logits, logits, none.view(0, 2), offsets)
    run(apply_logit_bias, logits, none, torch.empty(0), offsets)
    run(scatter_set_constant, logits, none.view(0, 2), 1.0)
    run(apply_token_bitmask, logits, int32(*[[0]] * 3), none)
    run(update_frequency_data, none.view(0, 2), offsets, int32(1, 2, 3))
    assert torch.equal(logits, expected)

    nothing = torch.empty(0, 7)
    run(apply_penalties_to_logits, nothing, none.view(0, 2), int32(0))
    run(apply_token_bitmask, nothing, none.view(0, 1))
    tokens, log_probabilities = run(greedy_with_logprobs, nothing)
    assert tokens.shape == log_probabilities.shape == (0,)
    assert run(logits_soft_cap, nothing, 3.0).shape == (0, 7)


def test_wrong_inputs_are_named() -> None:
    logits, data, offsets = torch.ones(2, 5), int32((1, 1)), int32(0, 1, 1)
    penalize = apply_penalties_to_logits
    with pytest.raises(ValueError, match="logits_buffer must be of float32, got bfloat16"):
        penalize(logits.bfloat16(), data, offsets)
    with pytest.raises(ValueError, match=r"frequency_data must be \[n, 2\], got \[1, 1\]"):
        penalize(logits, data[:, :1], offsets)
    with pytest.raises(ValueError, match=r"frequency_offsets must be \[3\], got \[2\]"):
        penalize(logits, data, offsets[:2])
    with pytest.raises(ValueError, match=r"presence_penalty must be \[2\], got \[3\]"):
        penalize(logits, data, offsets, presence_penalty=torch.ones(3))
    with pytest.raises(ValueError, match=r"repetition_penalty must be above 0, got 0"):
        penalize(logits, data, offsets, repetition_penalty=0.0)
    with pytest.raises(ValueError, match=r"tokens must be \[B\], got \[2, 1\]"):
        update_frequency_data(data, offsets, int32((1,), (2,)))
    with pytest.raises(ValueError, match="frequency_data must be of int32, got int64"):
        update_frequency_data(data.long(), offsets, int32(1, 2))
    with pytest.raises(ValueError, match=r"indices must be \[n, 2\], got \[2\]"):
        scatter_set_constant(logits, int32(1, 2), 0.0)
    with pytest.raises(ValueError, match="data must be of bfloat16 or float16 or float32, got"):
        scatter_set_constant(logits.double(), data, 0.0)
    with pytest.raises(ValueError, match=r"bitmask must be \[2, W\], got \[1, 2\]"):
        apply_token_bitmask(logits, data)
    with pytest.raises(ValueError, match="rows must be of int32, got int64"):
        apply_token_bitmask(logits, int32((1,), (1,)), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"bias must be \[1\], got \[2\]"):
        apply_logit_bias(logits, int32(1), torch.ones(2), offsets)
    with pytest.raises(ValueError, match=r"offsets must be \[3\], got \[2\]"):
        apply_logit_bias(logits, int32(1), torch.ones(1), offsets[:2])
    with pytest.raises(ValueError, match="cap must be above 0, got 0.0"):
        logits_soft_cap(logits, 0.0)
    with pytest.raises(ValueError, match="the vocabulary of logits must be from 1 to 1048576"):
        greedy_with_logprobs(torch.ones(2, 0))
    assert torch.equal(logits, torch.ones(2, 5))
