"""One context's stream in the API process: the truth about what was generated.

A token exists once `commit` has appended it; only then may its text reach a socket.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.core.status import TextGenerationStatus
from quire.server.engine import Caller, StreamTimes, TokenChunk
from quire.server.errors import ApiError


class Siblings:
    """The `count` choices of one prompt."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.longest = 0
        """Tokens of the longest of the ended ones."""
        self._left = count

    def on_end(self, num_tokens: int) -> bool:
        """One of them ended; whether it was the last."""
        self.longest = max(self.longest, num_tokens)
        self._left -= 1
        return self._left == 0


class LiveStream:
    """Implements `server.engine.TokenStream` for `EngineClient`."""

    def __init__(
        self,
        context: TextContext,
        on_close: Callable[["LiveStream"], None],
        caller: Caller | None,
        siblings: Siblings,
    ) -> None:
        self.context = context
        self.caller = caller
        self.siblings = siblings
        self.cached_tokens = 0
        self.prompt_logprobs: list[LogProbabilities] = []
        self.embedding = b""
        self.times = StreamTimes(time.monotonic())
        self.resumes = 0
        """How often a worker died under this context."""
        self.preemptions = 0
        """How often a worker put it back into the queue for want of pages."""
        self.deadline: asyncio.TimerHandle | None = None
        self.error: ApiError | None = None
        self.was_closed = False
        """Whether the reader closed it before its end."""
        self.was_stopped = False
        """Whether the reader closed it because the text hit a stop string."""
        self._on_close = on_close
        self._tokens: list[int] = []
        self._logprobs: list[LogProbabilities] = []
        self._changed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return self.error is not None or self.context.is_done

    @property
    def num_committed(self) -> int:
        return self.context.tokens.generated_length

    def commit(
        self, token: int, status: TextGenerationStatus, logprobs: LogProbabilities | None
    ) -> None:
        """Append one token; the reader sees it from now on."""
        self.context.tokens.extend((token,))
        self.context.status = status
        self._tokens.append(token)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self._changed.set()

    def commit_embedding(self, vector: bytes, status: TextGenerationStatus) -> None:
        """The vector that ends a context with `pooling`."""
        self.context.status = status
        self.embedding = vector
        self._changed.set()

    def add_prompt(self, start: int, entries: list[LogProbabilities]) -> None:
        """Append those of prompt positions from `start` on; what is known already is left out.

        Raises:
            ValueError: a gap.
        """
        known = len(self.prompt_logprobs) + 1
        if start > known:
            raise ValueError(f"prompt position {start} after {known - 1} known ones")
        self.prompt_logprobs += entries[known - start :]

    def fail(self, error: ApiError) -> None:
        """End the stream with an error; what was committed before is still read first."""
        self.error = error
        self._changed.set()

    def close(self, *, stopped: bool = False) -> None:
        if not self.has_ended:
            self.was_closed = True
            self.was_stopped = stopped
            self._on_close(self)

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            tokens, self._tokens = self._tokens, []
            logprobs, self._logprobs = self._logprobs, []
            status = self.context.status
            if tokens:
                yield TokenChunk(tokens, logprobs, status)
            if self.error is not None:
                raise self.error
            if status.is_done:
                return
