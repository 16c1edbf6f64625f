"""POST /v1/embeddings."""

import asyncio
import base64
from collections.abc import Sequence

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from quire.config.limits import LIMITS
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.embedding_config import EmbeddingConfig, finished_vector
from quire.server.engine import Engine, Origin, TokenStream
from quire.server.errors import ClientLeft, ContextLengthExceeded, InvalidRequest
from quire.server.logs import request_details
from quire.server.openai.admission import check_room, check_token, tokenize
from quire.server.openai.body import disconnect, read_request, warning_headers
from quire.server.openai.origin import origin_of
from quire.server.openai.prompts import Prompt
from quire.server.openai.schema import EmbeddingRequest
from quire.server.openai.served import ServedModel

WAIT_SECONDS = 0.02
"""How often a request of many texts looks for room for its next ones."""
MANY_VALUES = 16384
"""Numbers of vectors that are spelled out in a thread."""


async def create_embedding(http: Request) -> Response:
    """Embed one or several texts."""
    engine: Engine = http.app.state.engine
    check_room(http)
    served: ServedModel = http.app.state.served
    request = await read_request(http, EmbeddingRequest)
    model = served.resolve(request.model)
    config = served.embedding_config()
    _check_size(served, request)
    contexts = []
    for index, text in enumerate(request.input):
        param = "input" if len(request.input) == 1 else f"input.{index}"
        ids = await _token_ids(engine, served, config, text, param)
        context = _context(engine, config, served, ids, priority=request.priority, param=param)
        contexts.append(context)
    details = request_details(http.scope)
    details.model = model
    details.prompt_tokens = sum(context.tokens.prompt_length for context in contexts)
    vectors = await _vectors(http, request, contexts)

    def body() -> bytes:
        finished = [
            finished_vector(vector, normalize=config.normalize, dimensions=request.dimensions)
            for vector in vectors
        ]
        return _body(finished, request.encoding_format, model, details.prompt_tokens or 0)

    is_long = len(vectors) * _num_values(served, request) > MANY_VALUES
    content = await asyncio.to_thread(body) if is_long else body()
    return Response(content, media_type="application/json", headers=warning_headers(request))


def _num_values(served: ServedModel, request: EmbeddingRequest) -> int:
    return request.dimensions or served.hidden_size


def _check_size(served: ServedModel, request: EmbeddingRequest) -> None:
    if request.dimensions is not None and request.dimensions > served.hidden_size:
        raise InvalidRequest(
            f"'dimensions' must be at most the model's {served.hidden_size}, not "
            f"{request.dimensions}",
            param="dimensions",
            code="invalid_value",
        )
    values, limit = len(request.input) * _num_values(served, request), LIMITS.embedding_values
    if values > limit:
        raise InvalidRequest(
            f"'input': its vectors have {values} numbers; the limit of a reply is {limit}",
            param="input",
            code="invalid_value",
        )


async def _token_ids(
    engine: Engine, served: ServedModel, config: EmbeddingConfig, text: Prompt, param: str
) -> list[int]:
    if not isinstance(text, str):
        return text
    whole = config.text(text)
    # Of WordPiece, one token may stand for a text of any length.
    return await tokenize(
        engine,
        param,
        lambda max_length: served.tokenizer.encode(whole, max_tokens=max_length),
        is_cut=served.is_encoder,
    )


def _context(
    engine: Engine,
    config: EmbeddingConfig,
    served: ServedModel,
    ids: Sequence[int],
    *,
    priority: int,
    param: str,
) -> TextContext:
    limit = min(engine.max_length, config.max_tokens or engine.max_length)
    if not ids:
        raise InvalidRequest(f"'{param}' must not be empty", param=param, code="invalid_value")
    if len(ids) > limit:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens, but '{param}' has {len(ids)}",
            param=param,
        )
    for token in (min(ids), max(ids)):
        check_token(token, served, param)
    return TextContext(
        engine.new_request_id(),
        np.asarray(ids, dtype=np.int32),
        SamplingParams(),
        max_length=engine.max_length,
        priority=priority,
        pooling=config.pooling,
    )


async def _vectors(
    http: Request, request: EmbeddingRequest, contexts: Sequence[TextContext]
) -> list[bytes]:
    """What the engine makes of the contexts, in order.

    Raises:
        ApiError: the engine refused or failed one, or the client has left.
    """
    most = http.app.state.settings.max_batch_size
    origin = origin_of(http.scope, request)
    working = asyncio.create_task(_run(http.app.state.engine, contexts, origin, most))
    leaving = asyncio.create_task(disconnect(http.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return await working
    finally:
        working.cancel()
        leaving.cancel()


async def _run(
    engine: Engine, contexts: Sequence[TextContext], origin: Origin, most: int
) -> list[bytes]:
    """At most `most` contexts at once: one request does not fill the queue. The first ones are
    refused when it is full, the others wait."""
    vectors: list[bytes] = []
    while len(vectors) < len(contexts):
        count = min(most, len(contexts) - len(vectors))
        while count > 1 and not engine.has_room(count, origin.caller):
            count //= 2
        is_late = origin.seconds_left == 0
        if vectors and not is_late and not engine.has_room(1, origin.caller):
            await asyncio.sleep(WAIT_SECONDS)
            continue
        part = contexts[len(vectors) : len(vectors) + count]
        vectors += await _read(engine.submit(part, origin))
    return vectors


async def _read(streams: Sequence[TokenStream]) -> list[bytes]:
    try:
        for stream in streams:
            async for _ in stream:
                pass
        return [stream.embedding for stream in streams]
    finally:
        for stream in streams:
            stream.close()


def _body(
    vectors: Sequence[NDArray[np.float32]], encoding: str, model: str, prompt_tokens: int
) -> bytes:
    shown = [
        base64.b64encode(vector.astype("<f4").tobytes()).decode()
        if encoding == "base64"
        else vector
        for vector in vectors
    ]
    reply = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(shown)
        ],
        "model": model,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
