"""The scripted server, for the tests of the native routes."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_server import app, http, live, server_url, tokenizer
from tool_models import TEMPLATE, Model

from quire.pipelines.embedding_config import EmbeddingConfig

__all__ = ["app", "http", "live", "server_url", "tokenizer"]


@pytest.fixture
def make_model(live: Any) -> Iterator[Model]:
    """A model with a compiler of grammars that notes what it is asked."""
    state = live.app.state
    before = state.served, state.grammars
    yield Model(live, "auto", [], TEMPLATE)
    state.served, state.grammars = before


@pytest.fixture
def make_vectors(live: Any) -> Iterator[Callable[[], None]]:
    """Turns the model into one of embeddings."""
    state = live.app.state
    before = state.served

    def turn() -> None:
        state.served = dataclasses.replace(before, embedding=EmbeddingConfig("mean"), hidden_size=8)

    yield turn
    state.served = before
