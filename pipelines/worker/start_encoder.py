"""From settings and an encoder's folder to an engine that can step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.encoder_registry import SupportedEncoder
from quire.pipelines.core.messages import Ready
from quire.pipelines.text_encoder import EncoderStates
from quire.pipelines.worker.encoder_engine import EncoderEngine


@dataclass(frozen=True)
class StartedEncoder:
    """As `StartedEngine`, of an encoder."""

    engine: EncoderEngine
    model: EncoderStates
    settings: ModelSettings

    def ready(self, pid: int) -> Ready:
        """What the worker announces: a model without pages."""
        plan = self.model.plan
        return Ready(
            epoch=self.engine.epoch,
            pid=pid,
            device=self.model.device,
            dtype=self.model.dtype,
            max_length=plan.max_length,
            num_pages=0,
            page_size=self.settings.page_size,
            max_batch_size=self.settings.max_batch_size,
            max_batch_input_tokens=plan.step_tokens,
            memory_plan=[(row.name, row.num_bytes) for row in plan.rows],
            memory_table=plan.table(),
        )


def start_encoder(
    settings: ModelSettings,
    folder: Path,
    row: SupportedEncoder,
    epoch: int,
    progress: Callable[[str, float], None],
) -> StartedEncoder:
    """Load the encoder of `row` and build its engine; `progress` as of `start_engine`.

    Raises:
        ModelError: the folder or a weight is missing or wrong.
        ConfigError: the settings do not fit the model or the device.
    """
    if settings.engine != "quire":
        raise ConfigError(
            f"engine {settings.engine}: expected quire, as {row.names[0]} is an encoder; "
            "quire encode runs it on either"
        )
    model = EncoderStates(settings, folder, row, progress)
    engine = EncoderEngine(
        model,
        max_batch_size=settings.max_batch_size,
        max_batch_input_tokens=settings.max_batch_input_tokens,
        epoch=epoch,
    )
    return StartedEncoder(engine, model, settings)
