"""From settings and a model folder to an engine that can step; the worker and `LLM` start alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire.config.settings import ModelSettings
from quire.kernels.native import library
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.served import served_architectures
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.structured.matcher import GrammarMatchers
from quire.pipelines.worker.engine import Engine
from quire.pipelines.worker.load import LoadedModel, load_runner


@dataclass(frozen=True)
class StartedEngine:
    """An engine, what it was loaded from, and the limits it runs under."""

    engine: Engine
    model: LoadedModel
    config: SchedulerConfig
    cpu_kernels: str
    """As in `Ready`."""
    matchers: GrammarMatchers


def start_engine(
    settings: ModelSettings, folder: Path, epoch: int, progress: Callable[[str, float], None]
) -> StartedEngine:
    """Load the model and build its engine. `progress` gets (phase, fraction 0..1).

    Raises:
        ModelError: the folder or a weight is missing or wrong.
        ConfigError: the settings do not fit the model or the device.
    """
    architectures = served_architectures(settings)
    spec = load_model_spec(folder, architectures)
    model = load_runner(settings, folder, spec, progress, architectures=architectures)
    config = SchedulerConfig(
        page_groups=model.plan.groups,
        page_size=settings.page_size,
        max_batch_size=settings.max_batch_size,
        max_batch_input_tokens=settings.max_batch_input_tokens,
        max_length=model.max_length,
        enable_prefix_caching=settings.enable_prefix_caching,
    )
    matchers = GrammarMatchers(folder, spec)
    engine = Engine(model.runner, config, epoch)
    return StartedEngine(engine, model, config, _cpu_kernels(model.device), matchers)


def _cpu_kernels(device: str) -> str:
    if device != "cpu":
        return ""
    native = library()
    return "torch" if native is None else native.instruction_set.name.lower()
