"""Sampling: the right sets, the right frequencies, the same token whatever shares the batch."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from quire.kernels.cases import Case
from quire.kernels.sampling import SamplingInputs, sample_tokens, topk_fused_sampling
from quire.kernels.sampling.cases import SERVED_CASES, uniform_inputs
from quire.kernels.sampling.cpu import sample_tokens_cpu
from quire.kernels.sampling.kernel import sample_tokens_triton, topk_fused_sampling_triton
from quire.kernels.sampling.noise import NOISE_RANGE, gumbel, row_keys, token_words
from quire.kernels.sampling.reference import sample_tokens_reference

CPU = torch.device("cpu")
Sample = Callable[[torch.Tensor, SamplingInputs], torch.Tensor]
PATHS = [
    pytest.param(sample_tokens, id="cpu"),
    pytest.param(sample_tokens_reference, id="reference"),
    pytest.param(sample_tokens_triton, id="triton"),
]

FUSED_PATHS = [
    pytest.param(topk_fused_sampling, id="cpu"),
    pytest.param(topk_fused_sampling_triton, id="triton"),
]


def mixed_inputs(rows: int, seed: int) -> SamplingInputs:
    """Rows with every combination of filters, some greedy."""
    draw = np.random.default_rng(seed)

    def pick(values: tuple[float, ...], dtype: Any) -> NDArray[Any]:
        return draw.choice(np.array(values), rows).astype(dtype)

    return SamplingInputs(
        pick((0.0, 0.3, 1.0, 1.7), np.float32),
        pick((-1, 1, 7, 50, 5000), np.int32),
        pick((1.0, 0.95, 0.5, 1e-6), np.float32),
        pick((0.0, 0.02, 0.5, 1.0), np.float32),
        draw.integers(0, 2**63 - 1, rows),
        draw.integers(0, 8, rows).astype(np.int32),
        draw.integers(0, 100_000, rows).astype(np.int32),
    )


@pytest.mark.parametrize("case", SERVED_CASES[::4], ids=lambda case: case.name)
def test_cpu_equals_the_reference_at_served_sizes(case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))

    assert torch.equal(sample_tokens(**inputs), sample_tokens_reference(**inputs))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_mixed_rows_equal_the_reference(scale: float) -> None:
    """Rounded logits, so that ties are common, at boundaries too."""
    logits = (scale * torch.randn(200, 700, generator=torch.Generator().manual_seed(3))).bfloat16()
    logits = logits.float()
    inputs = mixed_inputs(200, 4)

    assert torch.equal(sample_tokens(logits, inputs), sample_tokens_reference(logits, inputs))
    few = inputs.take(np.arange(8))
    assert torch.equal(sample_tokens_triton(logits[:8], few), sample_tokens(logits[:8], few))


@pytest.mark.parametrize("sample", PATHS)
def test_a_token_does_not_depend_on_the_other_rows(sample: Sample) -> None:
    logits = 2 * torch.randn(6, 300, generator=torch.Generator().manual_seed(5))
    inputs = mixed_inputs(6, 6)
    full = sample(logits, inputs)

    for rows in ([3], [5, 0], [4, 3, 2]):
        index = np.array(rows)
        part = sample(logits[torch.tensor(rows)], inputs.take(index))
        assert part.tolist() == full[torch.tensor(rows)].tolist()


def test_rows_beyond_a_group_are_sampled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(20, 100, generator=torch.Generator().manual_seed(7))
    inputs = mixed_inputs(20, 8)
    expected = sample_tokens_cpu(logits, inputs)

    monkeypatch.setattr("quire.kernels.sampling.cpu.MAX_GROUP_ELEMENTS", 300)

    assert torch.equal(sample_tokens_cpu(logits, inputs), expected)


def chi_square_limit(freedom: int) -> float:
    """What chance exceeds once in 10,000 times (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * freedom)
    limit: float = freedom * (1 - spread + 3.719 * spread**0.5) ** 3
    return limit


FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.5},
    {"top_k": 4},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "min_p": 0.15},
)


def warped_by_transformers(logits_V: torch.Tensor, **filters: Any) -> torch.Tensor:
    unused: Any = None  # the tokens so far
    scores = TemperatureLogitsWarper(filters.get("temperature", 1.0))(unused, logits_V[None])
    if "top_k" in filters:
        scores = TopKLogitsWarper(filters["top_k"])(unused, scores)
    if "top_p" in filters:
        scores = TopPLogitsWarper(filters["top_p"])(unused, scores)
    if "min_p" in filters:
        scores = MinPLogitsWarper(filters["min_p"])(unused, scores)
    result: torch.Tensor = scores[0]
    return result


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_frequencies_are_those_of_the_softmax_that_transformers_leaves(
    filters: dict[str, Any],
) -> None:
    draws = 10_000
    logits_V = 1.5 * torch.randn(16, generator=torch.Generator().manual_seed(9))
    probability = warped_by_transformers(logits_V.double(), **filters).softmax(-1).numpy()

    for seed in (0, 2**62 + 12345):
        inputs = uniform_inputs(draws, seed=seed, **filters)
        tokens = sample_tokens(logits_V.expand(draws, -1).contiguous(), inputs)
        counts = np.bincount(tokens.numpy(), minlength=16)
        assert counts[probability == 0].sum() == 0
        kept = probability > 0
        if kept.sum() > 1:
            expected = probability[kept] * draws
            assert np.sum((counts[kept] - expected) ** 2 / expected) < chi_square_limit(
                kept.sum() - 1
            )


@pytest.mark.parametrize("sample", PATHS)
def test_greedy_takes_the_lowest_id_of_equals(sample: Sample) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [-math.inf, -2.0, -2.0, -math.inf]])
    inputs = uniform_inputs(2, temperature=0.0)

    assert sample(logits, inputs).tolist() == [1, 1]


@pytest.mark.parametrize("sample", PATHS)
def test_masked_tokens_and_extreme_temperatures(sample: Sample) -> None:
    logits = torch.full((6, 40), -math.inf)
    logits[:, 7], logits[:, 31] = 1e30, 1e30
    cold = sample(logits, uniform_inputs(6, temperature=1e-38, top_p=0.99, top_k=5))
    hot = sample(logits, uniform_inputs(6, temperature=1e30, min_p=0.1))

    assert set(cold.tolist()) == set(hot.tolist()) == {7, 31}


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, in the interpreter
@pytest.mark.parametrize("sample", PATHS)
def test_rows_of_nan_leave_the_others_alone(sample: Sample) -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(10))
    inputs = uniform_inputs(5, temperature=1.0, min_p=0.01)
    expected = sample(logits, inputs).tolist()
    logits[1], logits[3] = math.nan, -math.inf

    tokens = sample(logits, inputs).tolist()

    assert [tokens[row] for row in (0, 2, 4)] == [expected[row] for row in (0, 2, 4)]
    assert all(0 <= token < 50 for token in tokens)


def test_noise_is_gumbel_and_every_part_of_the_key_counts() -> None:
    ids = torch.arange(20_000, dtype=torch.int32)

    def words(seed: int, choice: int, position: int) -> torch.Tensor:
        key_0, key_1 = row_keys(
            np.array([seed]), np.array([choice], np.int32), np.array([position], np.int32)
        )
        return token_words(ids, torch.from_numpy(key_0), torch.from_numpy(key_1))

    base = words(1, 2, 3)
    ascending = gumbel(base).double().sort().values
    distribution = torch.exp(-torch.exp(-ascending))
    kolmogorov = (distribution - torch.arange(len(ids)) / len(ids)).abs().max()
    assert kolmogorov < 2.23 / len(ids) ** 0.5  # exceeded by chance once in 10,000 times
    assert len(set(base.tolist())) == len(ids)
    for other in (words(2, 2, 3), words(1 + 2**40, 2, 3), words(1, 3, 3), words(1, 2, 4)):
        correlation = np.corrcoef(gumbel(base).numpy(), gumbel(other).numpy())[0, 1]
        assert abs(correlation) < 0.04


def test_noise_is_the_one_that_resumed_streams_rely_on() -> None:
    """Written down, computed by hand with Python integers: a change breaks resumed requests."""

    def mix(word: int) -> int:
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    keys = []
    for key in (0x243F6A88, 0xB7E15162):
        for part in (2**62 % 2**32, 2**62 >> 32, 5, 77):
            key = mix((key + 0x9E3779B9) % 2**32 ^ part)
        keys.append(key)
    expected = [
        mix(mix((token * 0x9E3779B9 + keys[0]) % 2**32) ^ keys[1]) for token in (0, 1, 151_935)
    ]

    key_0, key_1 = row_keys(np.array([2**62]), np.array([5], np.int32), np.array([77], np.int32))
    tokens = torch.tensor([0, 1, 151_935], dtype=torch.int32)
    words = token_words(tokens, torch.from_numpy(key_0), torch.from_numpy(key_1))

    assert words.view(torch.uint32).tolist() == expected


def test_noise_stays_within_the_range_that_prunes() -> None:
    extremes = gumbel(torch.tensor([0, -1, 255, 256], dtype=torch.int32))

    assert extremes.isfinite().all()
    assert float(extremes.max() - extremes.min()) < NOISE_RANGE - 0.4


def test_a_noise_word_has_the_same_gumbel_at_every_place(threads: int) -> None:
    words = torch.randint(-(2**31), 2**31 - 1, (70_000,), dtype=torch.int32)
    full = gumbel(words)

    for start in (1, 3, 17, 69_000):
        for count in (1, 2, 7, 15, 33, 999):
            part = gumbel(words[start : start + count])
            assert torch.equal(part, full[start : start + count])


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="logits_RV must be of float32, got bfloat16"):
        sample_tokens(torch.ones(2, 3, dtype=torch.bfloat16), uniform_inputs(2))
    with pytest.raises(ValueError, match=r"logits_RV must be contiguous, got strides \[1, 2\]"):
        sample_tokens(torch.ones(3, 2).t(), uniform_inputs(2))
    with pytest.raises(ValueError, match="the vocabulary of logits_RV must be from 1 to 1048576"):
        sample_tokens(torch.ones(2, 0), uniform_inputs(2))
    with pytest.raises(ValueError, match="inputs must have 2 rows, got 3"):
        sample_tokens(torch.ones(2, 3), uniform_inputs(3))


@pytest.mark.parametrize("list_size", [16384, 64])
def test_short_lists_and_whole_rows_choose_the_same_tokens(
    list_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs a row; flat rows that a short list cannot hold, peaked ones that it can."""
    flatness = torch.tensor([0.3, 9.0]).repeat_interleave(3)[:, None]
    logits = flatness * torch.randn(6, 5000, generator=torch.Generator().manual_seed(11))
    inputs = uniform_inputs(6, temperature=0.9, seed=12)
    filters = [(40, 1.0), (-1, 0.9), (200, 0.8)] * 2
    inputs.top_k[:] = [top_k for top_k, _ in filters]
    inputs.top_p[:] = [top_p for _, top_p in filters]
    monkeypatch.setattr("quire.kernels.sampling.kernel.LIST_SIZE", list_size)

    tokens = sample_tokens_triton(logits, inputs)

    assert torch.equal(tokens, sample_tokens_reference(logits, inputs))


@pytest.mark.parametrize("fused", FUSED_PATHS)
def test_options_are_numbers_or_tensors(fused: Callable[..., torch.Tensor]) -> None:
    logits = 2 * torch.randn(6, 200, generator=torch.Generator().manual_seed(13))
    inputs = mixed_inputs(6, 14)
    tensors = dataclasses.asdict(inputs.to(CPU))
    numbers = {name: value[1].item() for name, value in tensors.items()}

    assert torch.equal(fused(logits, **tensors)[:, 0], sample_tokens(logits, inputs))
    assert int(fused(logits[1:2], **numbers)) == int(sample_tokens(logits, inputs)[1])


def test_max_k_bounds_every_top_k_that_is_on() -> None:
    logits = torch.randn(400, 50, generator=torch.Generator().manual_seed(15))
    top_k = torch.tensor([-1, 2, 30, 0], dtype=torch.int32).repeat(100)
    bounded = torch.tensor([-1, 2, 4, 0], dtype=torch.int32).repeat(100)

    tokens = topk_fused_sampling(logits, top_k, max_k=4)

    assert torch.equal(tokens, topk_fused_sampling(logits, bounded))
    assert not torch.equal(tokens, topk_fused_sampling(logits, top_k))
    assert torch.equal(topk_fused_sampling(logits, 30, max_k=4), topk_fused_sampling(logits, 4))
    assert top_k.tolist() == [-1, 2, 30, 0] * 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature must be from 0.0 to"),
        ({"top_p": 0.0}, "top_p must be from 5e-324 to 1.0, got 0.0"),
        ({"min_p": 1.5}, "min_p must be from 0.0 to 1.0, got 1.5"),
        ({"max_k": 0}, "max_k must be from 1 to 2147483647, got 0"),
        ({"seed": 2**63}, "seed must be from"),
        ({"choice": -(2**31) - 1}, "choice must be from"),
        ({"position": 2**31}, "position must be from"),
        ({"temperature": torch.ones(3)}, r"temperature must be \[2\], got \[3\]"),
        ({"seed": torch.ones(2)}, "seed must be of int64, got float32"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topk_fused_sampling(torch.ones(2, 3), 1, **options)


@pytest.mark.parametrize("fused", FUSED_PATHS)
def test_no_rows_give_no_tokens(fused: Callable[..., torch.Tensor]) -> None:
    assert fused(torch.empty(0, 5), 3).shape == (0, 1)
