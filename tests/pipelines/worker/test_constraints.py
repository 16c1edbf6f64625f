"""Biases and bans of tokens: equal to transformers' logits processors, and rows left without a token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

from quire.pipelines.core.plan import NO_TOKEN_LEFT
from quire.pipelines.core.sampling_params import SamplingParams, ThinkingBudget
from quire.pipelines.worker.constraints import constrain

VOCABULARY = 50
HISTORY = [3, 9, 4, 9, 8, 3, 7]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("generated", [1, 3, 6])
def test_bad_words_are_those_of_transformers(
    generated: int, logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    words = ((5,), (3, 7, 11), (7, 12), (8, 3, 7, 13), (4, 7, 14), (1, 2, 3))
    context = context_of(HISTORY, len(HISTORY) - generated, bad_words=words)
    before = logits.clone()

    assert constrain(logits, 1, context) is None

    # transformers looks at the whole history, we at the output alone.
    output = torch.tensor([HISTORY[-generated:]])
    processor = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=[])
    assert torch.equal(logits[1], processor(output, before[1:])[0])
    assert torch.equal(logits[0], before[0])


def test_biases_are_those_of_transformers(
    logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    bias = {3: 5.5, 17: -100.0, 49: 0.25}
    before = logits.clone()

    assert constrain(logits, 0, context_of(HISTORY, logit_bias=bias)) is None

    processor = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    expected = processor(torch.tensor([HISTORY]), before[:1])[0]
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=0)


def test_only_allowed_tokens_keep_their_logits(
    logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    before = logits.clone()

    assert constrain(logits, 0, context_of(HISTORY, allowed_token_ids=(4, 40))) is None

    assert logits[0].isfinite().nonzero()[:, 0].tolist() == [4, 40]
    assert torch.equal(logits[0, [4, 40]], before[0, [4, 40]])
    assert torch.equal(logits[1], before[1])


def test_a_bias_does_not_undo_a_ban(logits: torch.Tensor, context_of: Callable[..., Any]) -> None:
    context = context_of(
        HISTORY, logit_bias={9: 100.0}, bad_words=((9,),), eos_token_ids=(8,), min_new_tokens=2
    )

    constrain(logits, 0, context)

    assert logits[0, [8, 9]].tolist() == [-torch.inf, -torch.inf]


def test_a_row_without_a_token_left_fails_alone(
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
    context_of: Callable[..., Any],
) -> None:
    loaded = load(random_model("Llama"))
    contexts = [
        context_of(HISTORY),
        context_of(HISTORY, allowed_token_ids=(5, 6), bad_words=((5,), (6,))),
        context_of(HISTORY, allowed_token_ids=(5, 6), temperature=1.0, logprobs=0),
    ]
    plan = drive(loaded).plan(contexts, [(index, len(HISTORY)) for index in range(3)])

    result = loaded.runner.execute(plan)

    assert result.errors == {1: NO_TOKEN_LEFT}
    assert result.tokens[1] == -1
    assert result.tokens[2] in (5, 6)


def test_impossible_constraints_are_refused() -> None:
    with pytest.raises(ValueError, match="logit_bias must be finite"):
        SamplingParams(logit_bias={3: float("nan")})
    with pytest.raises(ValueError, match="bad_words must be sequences that are not empty"):
        SamplingParams(bad_words=((3,), ()))


OPEN, CLOSE, SPACE = 40, 41, 9


@pytest.mark.parametrize(
    ("tokens", "is_open", "generated", "is_forced"),
    [
        (3, True, [1, 2], False),
        (3, True, [1, 2, 3], True),
        (3, True, [1, 2, 3, 4, 5], True),
        (3, True, [1, 2, CLOSE, 4, 5], False),
        (3, True, [1, 2, 3, CLOSE, 4, 5, 6, 7], False),
        (0, True, [], True),
        (0, False, [], False),
        (0, False, [OPEN], True),
        (2, False, [OPEN, 1], False),
        (2, False, [OPEN, 1, 2], True),
        (2, False, [SPACE, OPEN, 1, 2], True),
        (2, False, [SPACE, SPACE, SPACE, SPACE, OPEN, 1, 2], True),
        (0, False, [SPACE], False),
        (2, False, [7, OPEN, 1, 2], False),
        (2, False, [SPACE, 7, OPEN, 1, 2], False),
        (2, False, [1, 2, 3, 4, OPEN, 5, 6], False),
        (2, False, [1, 2, 3, 4, 5], False),
    ],
)
def test_the_end_of_reasoning_is_forced(
    tokens: int,
    is_open: bool,
    generated: list[int],
    is_forced: bool,
    logits: torch.Tensor,
    context_of: Callable[..., Any],
) -> None:
    budget = ThinkingBudget(tokens, OPEN, CLOSE, (SPACE,), is_open)
    context = context_of(
        [*HISTORY, *generated],
        len(HISTORY),
        thinking=budget,
        bad_words=((CLOSE,),) if is_forced else (),
        allowed_token_ids=(3,) if is_forced else (),
    )
    before = logits.clone()

    assert constrain(logits, 1, context) is None

    assert torch.equal(logits[0], before[0])
    if is_forced:
        assert logits[1].isfinite().nonzero()[:, 0].tolist() == [CLOSE]
    else:
        assert torch.equal(logits[1], before[1])


def test_a_grammar_that_does_not_let_reasoning_end_goes_first(
    logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    context = context_of(HISTORY, 2, thinking=ThinkingBudget(1, OPEN, CLOSE, (), True))
    logits[1, CLOSE] = float("-inf")
    before = logits.clone()

    assert constrain(logits, 1, context) is None
    assert torch.equal(logits, before)


def test_a_token_without_a_logit_is_not_forced(
    logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    """A tokenizer may know more tokens than the model."""
    context = context_of(HISTORY, 2, thinking=ThinkingBudget(0, OPEN, logits.shape[1], (), True))
    before = logits.clone()

    assert constrain(logits, 1, context) is None
    assert torch.equal(logits, before)


@pytest.mark.parametrize("resumed", [0, 1, 4, 5, 6])
def test_a_resumed_context_ends_its_reasoning_at_the_same_place(
    resumed: int,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
    context_of: Callable[..., Any],
) -> None:
    """`resumed` tokens were generated before a worker died."""
    loaded = load(random_model("Llama"))
    budget = ThinkingBudget(4, OPEN, CLOSE, (), is_open=True)

    def generate(history: list[int], count: int) -> list[int]:
        for _ in range(count):
            context = context_of(history, len(HISTORY), thinking=budget, temperature=1.0, seed=7)
            plan = drive(loaded).plan([context], [(0, len(history))])
            history = [*history, int(loaded.runner.execute(plan).tokens[0])]
        return history[len(HISTORY) :]

    whole = generate(HISTORY, 7)
    assert whole.index(CLOSE) == 4
    assert generate([*HISTORY, *whole[:resumed]], 7 - resumed) == whole
