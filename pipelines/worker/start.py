"""From settings and a model folder to an engine that can step; the worker and `LLM` start alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire.config.settings import ModelSettings
from quire.kernels.native import library
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.served import served_architectures
from quire.pipelines.core.messages import Ready
from quire.pipelines.model_task import encoder_of
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.structured.matcher import GrammarMatchers
from quire.pipelines.worker.engine import Engine
from quire.pipelines.worker.load import LoadedModel, load_runner
from quire.pipelines.worker.start_encoder import StartedEncoder, start_encoder

CPU_ITL_SECONDS = 0.125
CPU_ITL_STRETCH = 5.0
"""A CPU's steps with decodes: so many seconds, or so many steps of decodes alone."""


@dataclass(frozen=True)
class StartedEngine:
    """An engine, what it was loaded from, and the limits it runs under."""

    engine: Engine
    model: LoadedModel
    config: SchedulerConfig
    cpu_kernels: str
    """As in `Ready`."""
    matchers: GrammarMatchers

    def ready(self, pid: int) -> Ready:
        """What the worker announces."""
        model, config = self.model, self.config
        return Ready(
            epoch=self.engine.epoch,
            pid=pid,
            device=model.device,
            dtype=model.dtype,
            max_length=config.max_length,
            num_pages=config.num_pages,
            page_size=config.page_size,
            max_batch_size=config.max_batch_size,
            max_batch_input_tokens=config.max_batch_input_tokens,
            memory_plan=[(row.name, row.num_bytes) for row in model.plan.rows],
            memory_table=model.plan.table(),
            cpu_kernels=self.cpu_kernels,
            kv_cache_tokens=config.kv_cache_tokens,
            kv_cache_concurrency=model.plan.concurrency,
        )


def start_worker(
    settings: ModelSettings, folder: Path, epoch: int, progress: Callable[[str, float], None]
) -> StartedEngine | StartedEncoder:
    """As `start_engine`, or as `start_encoder` where the folder is an encoder's."""
    row = encoder_of(folder)
    if row is not None:
        return start_encoder(settings, folder, row, epoch, progress)
    return start_engine(settings, folder, epoch, progress)


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
        **_itl_bounds(settings, model.device),
    )
    matchers = GrammarMatchers(folder, spec)
    engine = Engine(model.runner, config, epoch)
    return StartedEngine(engine, model, config, _cpu_kernels(model.device), matchers)


def _itl_bounds(settings: ModelSettings, device: str) -> dict[str, float]:
    """What steps with decodes may take. On a GPU full chunks take no longer than streams bear."""
    if settings.itl_target is not None:
        return {"itl_target": settings.itl_target}
    if device == "cpu":
        return {"itl_target": CPU_ITL_SECONDS, "itl_stretch": CPU_ITL_STRETCH}
    return {}


def _cpu_kernels(device: str) -> str:
    if device != "cpu":
        return ""
    native = library()
    return "torch" if native is None else native.instruction_set.name.lower()
