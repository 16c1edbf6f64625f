"""Which GPU is current while a step runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.worker import runner
from quire.pipelines.worker.batch import build_inputs
from quire.pipelines.worker.load import LoadedModel


def test_the_gpu_of_the_model_is_current_while_kernels_are_launched(
    random_model: Callable[..., Any],
    load: Callable[..., LoadedModel],
    context_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current: list[torch.device] = []
    seen: list[tuple[str, list[torch.device]]] = []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(wanted)
        yield
        current.pop()

    def watched(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, list(current)))
            return run(*args, **kwargs)

        return call

    loaded = load(random_model("Llama"))
    model = loaded.runner._model
    second = torch.device("cuda", 1)
    monkeypatch.setattr(loaded.runner, "_device", second)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        runner, "build_inputs", lambda plan, size, _: build_inputs(plan, size, torch.device("cpu"))
    )
    monkeypatch.setattr(model, "hidden_states", watched("model", model.hidden_states))
    monkeypatch.setattr(runner, "sample_rows", watched("sampler", runner.sample_rows))

    loaded.runner.execute(StepPlan([PlanRow(context_of([5, 6, 7]), 0, 3, [[0]], True)]))

    assert seen == [("model", [second]), ("sampler", [second])]
