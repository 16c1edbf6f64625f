"""Checkpoints of random tiny models, runners that load them, and a loop that drives a runner."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from parity.driver import Driver, load_folder, make_context
from parity.random_models import make_random_model

from quire.pipelines.core.context import TextContext
from quire.pipelines.worker.load import LoadedModel


@pytest.fixture
def random_model() -> Callable[..., transformers.PreTrainedModel]:
    return make_random_model


@pytest.fixture
def context_of() -> Callable[..., TextContext]:
    return make_context


@pytest.fixture
def drive() -> Callable[..., Driver]:
    """`drive(loaded, seed=...)`: a driver over all pages of a loaded model."""

    def new_driver(loaded: LoadedModel, seed: int = 0) -> Driver:
        driver = Driver(loaded, seed)
        driver.clean()
        return driver

    return new_driver


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedModel]:
    """`load(model, ...)`: save a transformers model, load it as a worker does."""

    def load_model(
        model: transformers.PreTrainedModel, max_shard_size: str = "1GB", **settings: Any
    ) -> LoadedModel:
        model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        return load_folder(tmp_path, **settings)

    return load_model
