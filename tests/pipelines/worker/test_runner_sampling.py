"""From logits to tokens: penalties, banned tokens, seeds, log-probabilities, rows that fail."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import StepResult
from quire.pipelines.worker.load import LoadedModel

PROMPT = [5, 17, 17, 101, 60, 5, 9, 200, 33, 8]


@pytest.fixture
def loaded(random_model: Callable[..., Any], load: Callable[..., Any]) -> LoadedModel:
    model: LoadedModel = load(random_model("Llama"))
    return model


@pytest.fixture
def logits_after(loaded: LoadedModel, drive: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """fp32 [V] after a history."""

    def run(history: Sequence[int]) -> torch.Tensor:
        (found,) = drive(loaded).logits([history], [[(0, len(history))]])
        last: torch.Tensor = found[-1]
        return last

    return run


@pytest.fixture
def logits(logits_after: Callable[..., torch.Tensor]) -> torch.Tensor:
    return logits_after(PROMPT)


@pytest.fixture
def execute(loaded: LoadedModel, drive: Callable[..., Any]) -> Callable[..., StepResult]:
    """One step that runs each context's whole history."""

    def step(*contexts: TextContext) -> StepResult:
        driver = drive(loaded)
        chunks = [(index, len(context.tokens)) for index, context in enumerate(contexts)]
        result: StepResult = loaded.runner.execute(driver.plan(contexts, chunks))
        return result

    return step


def order(logits: torch.Tensor) -> list[int]:
    """Token ids, most likely first."""
    ids: list[int] = logits.argsort(descending=True).tolist()
    return ids


def test_greedy_takes_the_most_likely_token(
    execute: Callable[..., StepResult], logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    result = execute(context_of(PROMPT))

    assert result.tokens.tolist() == [order(logits)[0]]
    assert result.tokens.dtype == np.int32
    assert (result.logprobs, result.errors) == ([], {})


def test_a_step_of_chunks_alone_gives_no_token(
    loaded: LoadedModel, drive: Callable[..., Any], context_of: Callable[..., Any]
) -> None:
    result = loaded.runner.execute(drive(loaded).plan([context_of(PROMPT)], [(0, 4)]))

    assert result.tokens.tolist() == []
    assert result.logprobs == []


@pytest.mark.parametrize(
    ("fields", "is_banned"),
    [
        ({"eos": True, "min_new_tokens": 1}, True),
        ({"stop": True, "min_new_tokens": 1}, True),
        ({"eos": True, "min_new_tokens": 1, "ignore_eos": True}, False),
        ({"stop": True, "min_new_tokens": 1, "ignore_eos": True}, True),
        ({"eos": True}, False),
    ],
)
def test_ends_are_banned_below_min_new_tokens(
    fields: dict[str, Any],
    is_banned: bool,
    execute: Callable[..., StepResult],
    logits: torch.Tensor,
    context_of: Callable[..., Any],
) -> None:
    best, second = order(logits)[:2]
    ends = {
        "eos_token_ids": (best,) if fields.pop("eos", False) else (),
        # 5000 is beyond the vocabulary, and legal.
        "stop_token_ids": (best, 5000) if fields.pop("stop", False) else (),
    }

    result = execute(context_of(PROMPT, **ends, **fields), context_of(PROMPT))

    assert result.tokens.tolist() == [second if is_banned else best, best]


def test_ends_are_allowed_again_from_min_new_tokens_on(
    execute: Callable[..., StepResult], logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    best = order(logits)[0]
    resumed = context_of(PROMPT, 8, eos_token_ids=(best,), min_new_tokens=2)

    assert execute(resumed).tokens.tolist() == [best]


def test_repetition_penalty_is_that_of_transformers(
    execute: Callable[..., StepResult],
    logits_after: Callable[..., torch.Tensor],
    context_of: Callable[..., Any],
) -> None:
    history = list(range(0, 211, 2))
    raw = logits_after(history)
    expected = []
    for penalty in (0.3, 1.0, 1.5, 5.0):
        processor = RepetitionPenaltyLogitsProcessor(penalty)
        expected.append(int(processor(torch.tensor([history]), raw[None]).argmax()))
        # Prompt and output count alike, so the boundary does not matter.
        for prompt_length in (2, len(history)):
            context = context_of(history, prompt_length, repetition_penalty=penalty)
            assert execute(context).tokens.tolist() == expected[-1:]
    assert len(set(expected)) > 1


def test_frequency_and_presence_penalties_count_generated_tokens_only(
    execute: Callable[..., StepResult],
    logits: torch.Tensor,
    logits_after: Callable[..., torch.Tensor],
    context_of: Callable[..., Any],
) -> None:
    best = order(logits)[0]
    history = [best, *PROMPT, best, best, 7]
    raw = logits_after(history)
    prompt_length = len(PROMPT) + 1
    counts = torch.bincount(torch.tensor(history[prompt_length:]), minlength=len(raw))
    for frequency, presence in ((2.0, 0.0), (0.0, 2.0), (-2.0, 0.5), (0.0, -2.0)):
        context = context_of(
            history, prompt_length, frequency_penalty=frequency, presence_penalty=presence
        )
        expected = raw - frequency * counts - presence * (counts > 0)
        assert execute(context).tokens.tolist() == order(expected)[:1]


def test_penalties_of_one_row_leave_the_others_alone(
    execute: Callable[..., StepResult], logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    best = order(logits)[0]
    penalized = context_of([*PROMPT, best], len(PROMPT), frequency_penalty=2.0)

    result = execute(context_of(PROMPT), penalized, context_of(PROMPT))

    assert result.tokens[[0, 2]].tolist() == [best, best]


def test_log_probabilities_are_of_the_unmodified_logits(
    execute: Callable[..., StepResult], logits: torch.Tensor, context_of: Callable[..., Any]
) -> None:
    expected = logits.double().log_softmax(-1)
    best = order(logits)[0]
    plain = context_of(PROMPT, logprobs=5)
    changed = context_of(
        PROMPT,
        logprobs=2,
        temperature=1.7,
        repetition_penalty=2.0,
        min_new_tokens=1,
        eos_token_ids=(best,),
        seed=4,
    )

    result = execute(plain, context_of(PROMPT), changed, context_of(PROMPT, logprobs=0))

    assert result.logprobs[1] is None
    for row, top in ((0, 5), (2, 2), (3, 0)):
        found = result.logprobs[row]
        assert found is not None
        token = int(result.tokens[row])
        assert found.token_log_probability == pytest.approx(float(expected[token]), abs=1e-5)
        assert list(found.top_log_probabilities) == order(logits)[:top]
        for token, value in found.top_log_probabilities.items():
            assert value == pytest.approx(float(expected[token]), abs=1e-5)
    assert result.tokens[2] != best


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_after_a_resume(
    loaded: LoadedModel, drive: Callable[..., Any], context_of: Callable[..., Any]
) -> None:
    def new(**fields: Any) -> TextContext:
        context: TextContext = context_of(PROMPT, **{"temperature": 1.2, "seed": 9, **fields})
        return context

    decode = [[(0, 1)]] * 11
    alone = new()
    drive(loaded).run([alone], [[(0, len(PROMPT))], *decode])
    expected = alone.tokens.generated.tolist()

    mates = [new(), new(seed=10), new(choice=1), new(temperature=0.6, top_k=5, top_p=0.9)]
    steps = [[(index, size) for index in range(4)] for size in [len(PROMPT), *[1] * 11]]
    drive(loaded, seed=1).run(mates, steps)
    assert mates[0].tokens.generated.tolist() == expected
    assert mates[1].tokens.generated.tolist() != expected
    assert mates[2].tokens.generated.tolist() != expected

    resumed = context_of([*PROMPT, *expected[:5]], len(PROMPT), temperature=1.2, seed=9)
    drive(loaded).run([resumed], [[(0, 3)], [(0, len(PROMPT) + 2)], *decode[:6]])
    assert resumed.tokens.generated.tolist() == expected


def test_a_row_whose_logits_are_nan_fails_alone(
    loaded: LoadedModel, drive: Callable[..., Any], context_of: Callable[..., Any]
) -> None:
    contexts = [context_of(PROMPT, logprobs=1, temperature=0.9) for _ in range(3)]
    driver = drive(loaded)
    driver.run(contexts, [[(index, len(PROMPT)) for index in range(3)]])
    before = driver.plan(contexts, [(index, 1) for index in range(3)])
    expected = loaded.runner.execute(before)
    (poisoned,) = driver.tables[1]
    loaded.runner._storage.layers[1].v[poisoned] = float("nan")

    result = loaded.runner.execute(before)

    assert result.errors == {1: "the model produced invalid logits (NaN or infinity)"}
    assert result.tokens.tolist() == [expected.tokens[0], -1, expected.tokens[2]]
    assert result.logprobs[1] is None
    assert (result.logprobs[0], result.logprobs[2]) == (expected.logprobs[0], expected.logprobs[2])
    loaded.runner.scrub([poisoned])
    assert all(not layer.v[poisoned].any() for layer in loaded.runner._storage.layers)
    assert all(layer.v[driver.tables[0][0]].any() for layer in loaded.runner._storage.layers)


def test_asking_for_more_log_probabilities_than_tokens_gives_all(
    context_of: Callable[..., TextContext], execute: Callable[..., StepResult]
) -> None:
    result = execute(context_of(PROMPT, logprobs=10**12))

    found = result.logprobs[0]
    assert found is not None
    assert sorted(found.top_log_probabilities) == list(range(211))
