"""`BatchService`: files and batches of one daemon, put together from its settings."""

import time
from collections.abc import Callable

from fastapi import FastAPI

from quire.config.settings import ServeSettings
from quire.server.batches.gate import Gate
from quire.server.batches.job import Workplace
from quire.server.batches.line_request import LineRoutes
from quire.server.batches.metrics import BatchMetrics
from quire.server.batches.result_writer import ResultWriter
from quire.server.batches.runner import BatchRunner
from quire.server.batches.state_folder import StateFolder
from quire.server.batches.store import StoreThread


def background_places(settings: ServeSettings) -> int:
    """Of the places in a step, those that batches may take: live requests find the rest free."""
    return max(1, settings.max_batch_size * 3 // 4)


class BatchService:
    """What the routes use: the store, and the runner once it is started.

    The lines of batches run through the routes of `app`.

    Raises:
        ConfigError: see `StateFolder`.
    """

    def __init__(
        self,
        settings: ServeSettings,
        app: FastAPI,
        metrics: BatchMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        assert settings.state_dir is not None
        folder = StateFolder(settings.state_dir, settings.state_dir_size)
        self.store = StoreThread(folder, clock)
        place = Workplace(
            store=self.store,
            routes=LineRoutes(app),
            gate=Gate(app.state, background_places(settings)),
            writer=ResultWriter(self.store),
            metrics=metrics,
            max_line=settings.max_request_bytes,
        )
        self.runner = BatchRunner(place, clock)

    def start(self) -> None:
        """Go on with the batches of before, as soon as the engine has room."""
        self.runner.start()

    async def close(self) -> None:
        """To be called when no request is under way."""
        await self.runner.stop()
        await self.store.close()
