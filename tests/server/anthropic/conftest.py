"""The scripted server and the official client of Anthropic."""

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest
from scripted_server import app, http, live, server_url, tokenizer
from tool_models import TEMPLATE, Model

__all__ = ["app", "http", "live", "server_url", "tokenizer"]


@pytest.fixture
def make(live: Any) -> Iterator[Callable[..., Model]]:
    """A model of a tool format of the test's choice."""
    state = live.app.state
    before = state.served, state.grammars, state.settings

    def made(format_: str = "auto", marks: tuple[str, ...] = (), template: str = TEMPLATE) -> Model:
        return Model(live, format_, list(marks), template)

    yield made
    state.served, state.grammars, state.settings = before


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server_url, api_key="none", max_retries=0) as client:
        yield client
