"""Fixtures: a live uvicorn with every route, over an engine that says what a test scripts."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from fastapi import FastAPI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from quire.config.settings import ServeSettings
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.app import build_app
from quire.server.auth import load_api_keys
from quire.server.engine import Caller, Origin, StreamTimes, TokenChunk, TokenStream
from quire.server.errors import ApiError
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics
from quire.server.openai.served import ServedModel

MAX_LENGTH = 256
SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if shout is defined and shout %}LOUD{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, how are you today?",
    "héllo wörld 日本語 🙂 🎉 naïve café",
    "one two three four five six seven eight nine ten",
]


def train_tokenizer() -> TextTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    named = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
    return TextTokenizer(backend.to_str().encode(), named, TEMPLATE)


class FakeStream:
    """Says the engine's script for one context, `chunk_size` tokens at a time."""

    def __init__(self, context: TextContext, engine: "FakeEngine") -> None:
        self.context = context
        self.cached_tokens = engine.cached_tokens
        asked = context.params.prompt_logprobs
        rest = context.tokens.prompt[1:].tolist() if asked is not None else []
        self.prompt_logprobs = [_logprobs(token, asked or 0) for token in rest]
        self.times = StreamTimes(time.monotonic())
        self.num_said = 0
        self.is_closed = False
        self.was_stopped = False
        self.embedding = b""
        self._engine = engine

    def close(self, *, stopped: bool = False) -> None:
        self.is_closed = True
        self.was_stopped = self.was_stopped or stopped

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        engine, status = self._engine, TextGenerationStatus.ACTIVE
        if self.context.pooling is not None:
            await asyncio.sleep(engine.delay)
            if engine.fails_after is not None:
                raise engine.failure
            ids = self.context.tokens.prompt
            told = [len(ids), ids[0], ids[-1], 1, 2, 3, 4, 5]
            self.embedding = np.array(told, "<f4").tobytes()
            return
        tokens = iter(engine.script(self.context))
        while not status.is_done:
            await asyncio.sleep(engine.delay)
            if engine.fails_after is not None and self.num_said >= engine.fails_after:
                raise engine.failure
            chunk: list[int] = []
            for token in itertools.islice(tokens, engine.chunk_size):
                self.context.tokens.extend([token])
                self.num_said += 1
                chunk.append(token)
                status = self.context.judge(token)
                if status.is_done:
                    break
            if not chunk:
                await asyncio.Event().wait()
            if engine.ends_failed and self.num_said >= 2:
                status = TextGenerationStatus.FAILED
            asked = self.context.params.logprobs
            logprobs = [] if asked is None else [_logprobs(token, asked) for token in chunk]
            yield TokenChunk(chunk, logprobs, status)


def _logprobs(token: int, count: int) -> LogProbabilities:
    likely = [token, *(other for other in range(10, 40) if other != token)][:count]
    top = {other: -0.25 - rank for rank, other in enumerate(likely)}
    return LogProbabilities(-0.25, top, 1)


@dataclass
class FakeEngine:
    """Implements `server.engine.Engine`."""

    script: Callable[[TextContext], Sequence[int]]
    max_length: int = MAX_LENGTH
    chunk_size: int = 1
    delay: float = 0.0
    cached_tokens: int = 0
    fails_after: int | None = None
    ends_failed: bool = False
    failure: ApiError = field(default_factory=lambda: ApiError("unset"))
    refusal: ApiError | None = None
    is_unavailable: ApiError | None = None
    room: int = 1000
    most_live: int = 0
    streams: list[FakeStream] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def check_available(self) -> None:
        if self.is_unavailable is not None:
            raise self.is_unavailable

    def new_request_id(self) -> int:
        return next(self._ids)

    def check_room(self, caller: Caller | None) -> None:
        self.check_available()

    @property
    def num_live(self) -> int:
        return sum(not stream.is_closed for stream in self.streams)

    def has_room(self, count: int, caller: Caller | None) -> bool:
        return self.num_live + count <= self.room

    def submit(self, contexts: Sequence[TextContext], origin: Origin) -> list[TokenStream]:
        if self.refusal is not None:
            raise self.refusal
        self.origins.append(origin)
        streams = [FakeStream(context, self) for context in contexts]
        self.streams += streams
        self.most_live = max(self.most_live, self.num_live)
        return list(streams)


@dataclass
class Live:
    """The running server, with a fresh engine per test."""

    url: str
    app: FastAPI
    tokenizer: TextTokenizer

    @property
    def engine(self) -> FakeEngine:
        engine = self.app.state.engine
        assert isinstance(engine, FakeEngine)
        return engine

    def says(self, text: str, *, ends: bool = True) -> list[int]:
        """Make every context generate `text`, and then end; the tokens of it."""
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if ends:
            assert self.tokenizer.eos_token_id is not None
            tokens.append(self.tokenizer.eos_token_id)
        self.engine.script = lambda context: tokens
        return tokens


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return train_tokenizer()


@pytest.fixture(scope="module")
def app(tokenizer: TextTokenizer) -> FastAPI:
    settings = ServeSettings(stream_heartbeat=0.2)
    engine = FakeEngine(script=lambda context: [])
    lifecycle = Lifecycle()
    lifecycle.on_ready()
    app = build_app(settings, engine, load_api_keys(settings), Metrics("tiny"), lifecycle)
    app.state.served = ServedModel(
        names=("tiny", "tiny-alias"),
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=(2,),
        system_fingerprint="fp_test",
    )
    return app


@pytest.fixture(scope="module")
def server_url(app: FastAPI, serve: Callable[[FastAPI], Any]) -> str:
    return f"http://127.0.0.1:{serve(app).port}"


@pytest.fixture
def live(app: FastAPI, server_url: str, tokenizer: TextTokenizer) -> Live:
    app.state.engine = FakeEngine(script=lambda context: [])
    server = Live(server_url, app, tokenizer)
    server.says("Hello world, how are you today?")
    return server


@pytest.fixture(scope="module")
def http(server_url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server_url, timeout=20.0) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        yield client
