"""A model of a tool format of the test's choice, and a store of responses that is empty."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tool_models import TEMPLATE, Model

from quire.server.openai.responses.store import ResponseStore


@pytest.fixture(autouse=True)
def store(request: pytest.FixtureRequest) -> Iterator[ResponseStore]:
    made = ResponseStore(1_000_000, 100)
    if "app" in request.fixturenames:
        request.getfixturevalue("app").state.responses = made
    yield made


@pytest.fixture
def make(live: Any) -> Iterator[Callable[..., Model]]:
    state = live.app.state
    before = state.served, state.grammars, state.settings

    def made(format_: str = "auto", marks: tuple[str, ...] = (), template: str = TEMPLATE) -> Model:
        return Model(live, format_, list(marks), template)

    yield made
    state.served, state.grammars, state.settings = before
