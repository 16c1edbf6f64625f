"""The compiled sampler takes torch's tokens: what its own rounding could change it leaves."""

import math

import numpy as np
import pytest
import torch

from quire.kernels.native import InstructionSet, library
from quire.kernels.sampling import (
    SamplingInputs,
    find_invalid_rows,
    sample_tokens,
    widen_logits,
)
from quire.kernels.sampling.cases import uniform_inputs
from quire.kernels.sampling.cpu import sample_tokens_torch
from quire.kernels.sampling.cpu_native import (
    find_invalid_rows_native,
    sample_tokens_native,
    widen_logits_native,
)
from quire.kernels.sampling.noise import LEAST_UNIFORM, UNIFORM_STEP, gumbel
from quire.kernels.sampling.reference import cumulative_mass, sample_tokens_reference

NATIVE = library()
SETS = () if NATIVE is None else tuple(s for s in InstructionSet if s <= NATIVE.instruction_set)
every_set = pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: chosen.name.lower())

SCORE_MARGIN, MASS_MARGIN = 4e-5, 4e-6
"""Of kernels/native/sampling.h."""


def natively(logits: torch.Tensor, inputs: SamplingInputs, chosen: InstructionSet) -> torch.Tensor:
    assert NATIVE is not None
    return sample_tokens_native(NATIVE, logits, inputs, instruction_set=chosen)


def assert_same_tokens(
    logits: torch.Tensor, inputs: SamplingInputs, expected: torch.Tensor
) -> None:
    """In each variant, but for a row in a hundred at most; and in all rows by the public way."""
    for chosen in SETS:
        tokens = natively(logits, inputs, chosen)
        is_left = tokens < 0
        assert torch.equal(tokens[~is_left], expected[~is_left]), chosen
        assert is_left.sum() <= 1 + len(tokens) / 100, chosen
    assert torch.equal(sample_tokens(logits, inputs), expected)


def filtered_inputs(rows: int, seed: int) -> SamplingInputs:
    draw = np.random.default_rng(seed)
    inputs = uniform_inputs(rows)
    inputs.temperature[:] = draw.choice((0.0, 0.3, 1.0, 1.7, 50.0), rows)
    inputs.top_k[:] = draw.choice((-1, 1, 7, 50, 500, 5000), rows)
    inputs.top_p[:] = draw.choice((1.0, 0.95, 0.5, 1e-6, 0.9999999), rows)
    inputs.min_p[:] = draw.choice((0.0, 0.0, 0.02, 0.5, 1.0), rows)
    inputs.seed[:] = draw.integers(-(2**63), 2**63 - 1, rows)
    inputs.choice[:] = draw.integers(0, 8, rows)
    return inputs


def test_a_hundred_thousand_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    for seed in range(10):
        logits = 2 * torch.randn(10_000, 97, generator=generator)
        inputs = uniform_inputs(10_000, temperature=0.9, seed=seed)
        assert_same_tokens(logits, inputs, sample_tokens_torch(logits, inputs))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("vocabulary", [1, 7, 64, 65, 700, 3001])
def test_filters_of_every_kind(vocabulary: int, scale: float) -> None:
    """Rounded logits, so that ties are common, at boundaries too; in some rows few are finite."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (scale * torch.randn(150, vocabulary, generator=generator)).bfloat16().float()
    is_masked = torch.rand(50, vocabulary, generator=generator) < 0.9
    is_masked[:, 0] = False
    logits[:50][is_masked] = -torch.inf
    inputs = filtered_inputs(150, vocabulary)

    expected = sample_tokens_reference(logits, inputs)

    assert torch.equal(sample_tokens_torch(logits, inputs), expected)
    assert torch.equal(sample_tokens(logits, inputs), expected)
    for chosen in SETS:
        tokens = natively(logits, inputs, chosen)
        assert torch.equal(tokens[tokens >= 0], expected[tokens >= 0]), chosen


@pytest.mark.parametrize("flatness", [0.1, 1.0, 3.0])
def test_rows_of_which_most_tokens_are_passed_over(flatness: float) -> None:
    """Blocks that cannot win any more, known by their least distance."""
    generator = torch.Generator().manual_seed(6)
    logits = flatness * torch.randn(400, 9_001, generator=generator)
    logits[:200] = logits[:200].sort(-1, descending=True).values
    inputs = uniform_inputs(400, temperature=0.7, seed=4)

    assert_same_tokens(logits, inputs, sample_tokens_torch(logits, inputs))


def test_great_vocabularies_with_flat_and_peaked_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    flatness = torch.tensor([0.01, 0.5, 3.0, 8.0]).repeat(3)[:, None]
    logits = flatness * torch.randn(12, 50_000, generator=generator)
    for filters in ({"top_p": 0.95}, {"top_k": 40}, {"top_k": 3000, "top_p": 0.8}, {"min_p": 0.1}):
        inputs = uniform_inputs(12, seed=3, **filters)
        assert_same_tokens(logits, inputs, sample_tokens_reference(logits, inputs))


def test_rows_that_rounding_decides_are_left_to_torch() -> None:
    if NATIVE is None:
        pytest.skip("no compiled library")
    # The last token is far behind: the noise of two decides.
    logits = torch.tensor([[0.0, 0.0, -90.0]]).repeat(400_000, 1)
    inputs = uniform_inputs(len(logits), seed=5)

    tokens = natively(logits, inputs, NATIVE.instruction_set).numpy()

    # A difference of two noises is logistic: its density at 0 is a quarter.
    left = np.flatnonzero(tokens < 0)
    assert 0 < len(left) < 4 * SCORE_MARGIN / 2 * len(tokens)
    some = np.concatenate([left, np.arange(2000)])
    expected = sample_tokens_torch(logits[: len(some)], inputs.take(some))
    assert torch.equal(sample_tokens(logits[: len(some)], inputs.take(some)), expected)


def test_the_noise_and_masses_of_torch_are_within_the_margins() -> None:
    """As those of the compiled sampler are (native_fuzz_rows.cpp), so none is beyond them."""
    # Some of the numbers between, and all of the ends.
    numbers = np.unique(np.r_[0:70_000, 0 : 2**24 : 17, 2**24 - 70_000 : 2**24])
    words = torch.from_numpy(numbers.astype(np.int32)) << 8
    uniform = np.maximum(numbers * UNIFORM_STEP, LEAST_UNIFORM)
    noise = gumbel(words).numpy()
    assert np.abs(noise + np.log(-np.log(uniform))).max() < SCORE_MARGIN / 8

    distance = torch.linspace(0.0, 80.0, 1_000_000)
    mass = np.diff(cumulative_mass(distance).numpy()[:20_000])
    wanted = np.exp(-distance[1:20_000].double().numpy())
    assert np.abs(mass / wanted - 1).max() < MASS_MARGIN / 8


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.9}, {"top_k": 2, "top_p": 0.9}, {"min_p": 0.1}]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_greatest_number_gets_any_token(
    temperature: float, options: dict[str, float]
) -> None:
    """And no error, which would fail the other rows of the step."""
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(7))
    inputs = uniform_inputs(6, temperature=temperature, **options)  # type: ignore[arg-type]
    expected = sample_tokens(logits, inputs)
    logits[1], logits[2], logits[3] = math.nan, -math.inf, math.inf
    logits[4, 5] = math.nan

    for sample in (sample_tokens, sample_tokens_torch, sample_tokens_reference):
        tokens = sample(logits, inputs)
        assert all(0 <= token < 40 for token in tokens.tolist())
        assert tokens[[0, 5]].tolist() == expected[[0, 5]].tolist()


@every_set
def test_tokens_do_not_depend_on_threads(chosen: InstructionSet, threads: int) -> None:
    logits = torch.randn(9, 20_000, generator=torch.Generator().manual_seed(8))
    inputs = filtered_inputs(9, 9)
    whole = natively(logits, inputs, chosen)

    for row in range(9):
        alone = natively(logits[row : row + 1], inputs.take(np.array([row])), chosen)
        assert alone.tolist() == [whole[row]]


@every_set
@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 7), (1, 1), (3, 1027), (2, 40_001)])
def test_widened_logits_are_torchs(rows: int, vocabulary: int, chosen: InstructionSet) -> None:
    assert NATIVE is not None
    generator = torch.Generator().manual_seed(vocabulary)
    bits = torch.randint(-(2**15), 2**15, (rows, vocabulary), generator=generator)
    logits = bits.to(torch.int16).view(torch.bfloat16)
    expected = logits.float().view(torch.int32)

    found = widen_logits_native(NATIVE, logits, instruction_set=chosen)

    assert torch.equal(found.view(torch.int32), expected)
    assert torch.equal(widen_logits(logits).view(torch.int32), expected)


@every_set
@pytest.mark.parametrize("vocabulary", [1, 15, 16, 1027])
def test_one_wrong_number_anywhere_makes_a_row_invalid(
    vocabulary: int, chosen: InstructionSet
) -> None:
    assert NATIVE is not None
    wrong = torch.tensor([math.nan, -math.nan, math.inf])
    places = torch.tensor([0, vocabulary // 2, vocabulary - 1]).repeat_interleave(3)
    logits = torch.randn(9, vocabulary, generator=torch.Generator().manual_seed(1))
    for background in (logits, logits.clone().fill_(-math.inf)):
        rows = background.clone()
        rows[torch.arange(9), places] = wrong.repeat(3)
        assert find_invalid_rows_native(NATIVE, rows, instruction_set=chosen).all()
        # Not a number, but a finite one among -inf.
        rows[torch.arange(9), places] = -3.0e38
        assert not find_invalid_rows_native(NATIVE, rows, instruction_set=chosen).any()
    nothing = torch.full((2, vocabulary), -math.inf)
    assert find_invalid_rows_native(NATIVE, nothing, instruction_set=chosen).all()


def test_rows_are_judged_alike_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(4, 50)
    rows[1, 49], rows[2, 0], rows[3] = math.nan, math.inf, -math.inf
    found = find_invalid_rows(rows)
    monkeypatch.setattr("quire.kernels.sampling.logits.library", lambda: None)

    assert torch.equal(found, find_invalid_rows(rows))
    assert torch.equal(widen_logits(rows[:1].bfloat16()), rows[:1])
