"""A model of a tool format of the test's choice."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tool_models import TEMPLATE, Model


@pytest.fixture
def make(live: Any) -> Iterator[Callable[..., Model]]:
    state = live.app.state
    before = state.served, state.grammars, state.settings

    def made(format_: str = "auto", marks: tuple[str, ...] = (), template: str = TEMPLATE) -> Model:
        return Model(live, format_, list(marks), template)

    yield made
    state.served, state.grammars, state.settings = before
