"""Masks of grammars: found while the model runs, applied to their own rows."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.pipelines.core.plan import GRAMMAR_TOO_SLOW, NO_TOKEN_LEFT

HISTORY = [3, 9, 4, 9, 8, 3, 7]


class Matcher:
    """Lets the tokens of `allowed` through; None: all of them."""

    def __init__(self, vocab_size: int, allowed: tuple[int, ...] | None) -> None:
        self.vocab_size = vocab_size
        self.is_too_slow = False
        self.filled = threading.Event()
        self._allowed = allowed

    def fill(self, bitmask_RW: torch.Tensor, row: int) -> bool:
        self.filled.set()
        if self._allowed is None:
            return False
        words = bitmask_RW.numpy().view("uint32")
        words[row] = 0
        for token in self._allowed:
            words[row, token // 32] |= 1 << (token % 32)
        return True

    def accept(self, token: int) -> None:
        assert self._allowed is None or token in self._allowed


@pytest.fixture
def loaded(random_model: Callable[..., Any], load: Callable[..., Any]) -> Any:
    return load(random_model("Llama"))


def test_masks_are_found_while_the_model_runs(
    loaded: Any,
    drive: Callable[..., Any],
    context_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, context = drive(loaded), context_of(HISTORY)
    context.matcher = Matcher(64, (5, 33))
    run = loaded.runner.logits

    def waiting(inputs: Any) -> torch.Tensor:
        assert context.matcher.filled.wait(10.0)
        logits: torch.Tensor = run(inputs)
        return logits

    monkeypatch.setattr(loaded.runner, "logits", waiting)

    result = loaded.runner.execute(driver.plan([context], [(0, len(HISTORY))]))

    assert result.tokens[0] in (5, 33)


def test_each_row_has_its_own_mask(
    loaded: Any, drive: Callable[..., Any], context_of: Callable[..., Any]
) -> None:
    contexts = [context_of(HISTORY) for _ in range(7)]
    allowed = [None, (40,), (), None, (5, 63), (1,), (2, 3)]
    for context, tokens in zip(contexts[1:6], allowed[1:6], strict=True):
        context.matcher = Matcher(211, tokens)
    contexts[5].matcher.is_too_slow = True
    chunks = [(index, len(HISTORY)) for index in range(6)]
    # One that does not sample yet keeps the rows of the logits apart from those of the step.
    chunks.insert(0, (6, 3))
    contexts[6].matcher = Matcher(211, allowed[6])

    result = loaded.runner.execute(drive(loaded).plan(contexts, chunks))

    free = result.tokens[0]
    assert result.tokens[1] == 40 and result.tokens[3] == free
    assert result.tokens[4] in (5, 63)
    assert result.errors == {2: NO_TOKEN_LEFT, 5: GRAMMAR_TOO_SLOW}
    assert not contexts[6].matcher.filled.is_set()
    assert not contexts[5].matcher.filled.is_set()
