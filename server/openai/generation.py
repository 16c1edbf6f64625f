"""`Generation`: the choices of one request, from submission to the last token or the client's leave."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Receive

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.text.text_stream import FinishReason, TextStream
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.engine import Engine, Origin, TokenChunk, TokenStream
from quire.server.errors import GenerationFailed, InternalError
from quire.server.logs import RequestDetails
from quire.server.openai.body import disconnect
from quire.server.openai.replies import Usage
from quire.server.openai.tools.reasoning_meter import ReasoningMeter


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What a choice gained. `logprobs` is empty when the request did not ask for them."""

    index: int
    text: str
    tokens: list[int]
    logprobs: list[LogProbabilities]
    offsets: list[int]
    """Characters of the choice's text before each token."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[LogProbabilities] | None = None
    """Of the prompt's tokens after the first; in a choice's first delta alone."""
    cached_tokens: int = 0
    """Of the prompt, served from the prefix cache."""


class _Choice:
    """One token stream and the text made of it; `is_silent` choices show no token."""

    def __init__(
        self,
        index: int,
        stream: TokenStream,
        text: TextStream,
        *,
        is_silent: bool,
        meter: ReasoningMeter | None,
    ) -> None:
        self.index = index
        self.meter = meter
        self.stream = stream
        self.num_tokens = 0
        self._is_silent = is_silent
        self._has_begun = False
        self.finish_reason: FinishReason | None = None
        self._text = text

    def feed(self, chunk: TokenChunk) -> ChoiceDelta:
        if chunk.status is TextGenerationStatus.FAILED:
            raise GenerationFailed("The model failed on this request")
        prompt = None if self._has_begun else self.stream.prompt_logprobs
        self._has_begun = True
        if self._is_silent:
            self.finish_reason = "length"
            cached = self.stream.cached_tokens
            return ChoiceDelta(self.index, "", [], [], [], "length", None, prompt, cached)
        delta = self._text.feed(chunk.tokens, chunk.status)
        self.num_tokens += delta.num_tokens
        self.finish_reason = delta.finish_reason
        if self.meter is not None:
            is_last = delta.finish_reason is not None
            self.meter.feed(delta.text, delta.offsets, is_last=is_last)
        return ChoiceDelta(
            self.index,
            delta.text,
            chunk.tokens[: delta.num_tokens],
            chunk.logprobs[: delta.num_tokens],
            delta.offsets,
            delta.finish_reason,
            delta.stop_reason,
            prompt,
            self.stream.cached_tokens,
        )


class Generation:
    """Reads the token streams of all choices side by side.

    One delta waits at most; while it does, the streams gather tokens, so a slow reader gets fewer
    and larger deltas instead of a growing queue. Whoever creates one closes it.

    `starts_fresh`, `shown_tokens`: see `TextStream`. `is_silent`: the request wants the prompt alone.
    `choices_per_prompt`: contexts that share a prompt, in a row. `new_meter` makes what counts a
    choice's tokens of reasoning, for the usage.

    Raises:
        Overloaded, EngineUnavailable: from the engine, at construction.
    """

    def __init__(
        self,
        engine: Engine,
        contexts: Sequence[TextContext],
        tokenizer: TextTokenizer,
        *,
        origin: Origin,
        choices_per_prompt: int,
        starts_fresh: bool,
        is_silent: bool = False,
        shown_tokens: frozenset[int] = frozenset(),
        new_meter: Callable[[], ReasoningMeter] | None = None,
    ) -> None:
        self._choices = [
            _Choice(
                index,
                stream,
                TextStream(
                    tokenizer,
                    stream.context.params,
                    starts_fresh=starts_fresh,
                    shown_tokens=shown_tokens,
                ),
                is_silent=is_silent,
                meter=None if new_meter is None else new_meter(),
            )
            for index, stream in enumerate(engine.submit(contexts, origin))
        ]
        self._first_choices = self._choices[::choices_per_prompt]
        self._unfinished = len(self._choices)
        self._deltas: asyncio.Queue[ChoiceDelta | Exception | None] = asyncio.Queue(maxsize=1)
        self._peeked: ChoiceDelta | None = None
        self._closed = False
        self._watcher: asyncio.Task[None] | None = None
        self._readers = [asyncio.create_task(self._read(choice)) for choice in self._choices]

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    @property
    def is_complete(self) -> bool:
        """Whether every choice came to its end and was read."""
        return self._unfinished == 0

    @property
    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, whatever the number of its choices."""
        prompt = sum(choice.stream.context.tokens.prompt_length for choice in self._first_choices)
        completion = sum(choice.num_tokens for choice in self._choices)
        cached = sum(choice.stream.cached_tokens for choice in self._first_choices)
        usage: Usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        meters = [choice.meter for choice in self._choices if choice.meter is not None]
        if meters:
            reasoning = sum(meter.num_tokens for meter in meters)
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage

    def describe(self, details: RequestDetails) -> None:
        """Say in the request's log line what was generated, as far as it came."""
        usage = self.usage
        details.prompt_tokens = usage["prompt_tokens"]
        details.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        details.generated_tokens = usage["completion_tokens"]
        times = self._choices[0].stream.times
        if times.queue_seconds is not None:
            details.queue_ms = times.queue_seconds * 1000
        if times.first_token is not None:
            details.ttft_ms = (times.first_token - times.arrival) * 1000
        reasons = sorted({choice.finish_reason or "abort" for choice in self._choices})
        details.finish_reason = ",".join(reasons)

    def close_on_disconnect(self, receive: Receive) -> None:
        """Close as soon as the client has left. The request's body must have been read."""

        async def watch() -> None:
            await disconnect(receive)
            self.close()

        self._watcher = asyncio.create_task(watch())

    async def wait_for_output(self) -> bool:
        """Wait until the engine has produced something; False if the client left before.

        Raises:
            ApiError: the engine could not begin, so the reply can still be an HTTP error.
        """
        self._peeked = await self.next()
        return self._peeked is not None

    async def next(self) -> ChoiceDelta | None:
        """The next delta of any choice; None when all are complete or this is closed.

        May be cancelled without losing a delta.

        Raises:
            ApiError: a choice cannot be finished.
        """
        if self._peeked is not None:
            delta, self._peeked = self._peeked, None
            return delta
        if self._closed or self.is_complete:
            return None
        item = await self._deltas.get()
        if isinstance(item, Exception):
            self.close()
            raise item
        if item is not None and item.finish_reason is not None:
            self._unfinished -= 1
        return item

    def close(self) -> None:
        """Stop whatever still runs; safe to call at any time, more than once."""
        if self._closed:
            return
        self._closed = True
        for reader in self._readers:
            reader.cancel()
        for choice in self._choices:
            choice.stream.close()
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()
        if self._deltas.empty():
            self._deltas.put_nowait(None)

    async def _read(self, choice: _Choice) -> None:
        try:
            async for chunk in choice.stream:
                delta = choice.feed(chunk)
                if delta.finish_reason is not None:
                    choice.stream.close(stopped=isinstance(delta.stop_reason, str))
                    await self._deltas.put(delta)
                    return
                await self._deltas.put(delta)
            raise InternalError("The engine ended a stream without saying why")
        except Exception as error:  # noqa: BLE001 - raised again by `next`
            await self._deltas.put(error)
