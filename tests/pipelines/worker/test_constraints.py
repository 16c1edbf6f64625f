"""Biases and bans of tokens: equal to transformers' logits processors, and rows left without a token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

from quire.pipelines.core.plan import NO_TOKEN_LEFT
from quire.pipelines.core.sampling_params import SamplingParams
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
