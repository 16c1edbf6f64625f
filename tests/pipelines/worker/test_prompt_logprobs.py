"""Log-probabilities of prompts equal transformers' own, however the prompt is cut into steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.worker import prompt_logprobs

PROMPT = [5, 17, 17, 101, 60, 5, 9, 200, 33, 8, 150, 2, 77, 64, 91, 12, 13, 180, 7, 7, 40]


def told_by(
    loaded: Any, drive: Callable[..., Any], make: Callable[..., Any], chunks: list[int]
) -> tuple[list[LogProbabilities], int]:
    """The entries of PROMPT, run in `chunks` beside a context that did not ask, and its token."""
    driver = drive(loaded)
    contexts = [make(PROMPT, prompt_logprobs=3), make(PROMPT[:9])]
    entries: list[LogProbabilities] = []
    for number, count in enumerate(chunks):
        step = [(0, count), (1, 9)] if number == 0 else [(0, count)]
        plan = driver.plan(contexts, step)
        result = loaded.runner.execute(plan)
        for told in result.prompt_logprobs:
            assert told.start == len(entries) + 1
            entries += told.entries
        driver.advance(plan, result)
    return entries, int(contexts[0].tokens.generated[0])


@pytest.fixture
def told(random_model: Any, load: Any, drive: Any, context_of: Any) -> Callable[..., Any]:
    loaded = load(random_model("Llama"))
    return lambda chunks: told_by(loaded, drive, context_of, chunks)


def test_equal_transformers(random_model: Callable[..., Any], told: Callable[..., Any]) -> None:
    entries, token = told([len(PROMPT)])

    logits = random_model("Llama")(torch.tensor([PROMPT])).logits[0].detach()
    expected = logits.log_softmax(-1)
    assert len(entries) == len(PROMPT) - 1
    for position, entry in enumerate(entries):
        row, target = expected[position], PROMPT[position + 1]
        assert entry.token_log_probability == pytest.approx(row[target].item(), abs=1e-4)
        top = row.topk(3)
        assert list(entry.top_log_probabilities) == top.indices.tolist()
        assert list(entry.top_log_probabilities.values()) == pytest.approx(
            top.values.tolist(), abs=1e-4
        )
        assert entry.rank == (row > row[target]).sum().item() + 1
    assert token == expected[-1].argmax().item()


@pytest.mark.parametrize("chunks", [[16, 5], [1] * 21, [20, 1], [3, 17, 1]])
def test_bits_do_not_depend_on_the_cuts(
    told: Callable[..., Any], chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = told([len(PROMPT)])
    monkeypatch.setattr(prompt_logprobs, "ROWS_AT_ONCE", 4)

    assert told(chunks) == whole
