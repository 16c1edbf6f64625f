"""The part of an endpoint after its contexts exist: run them, then reply whole or as a stream."""

import asyncio
from collections.abc import Mapping, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response

from quire.pipelines.core.context import TextContext
from quire.server.logs import request_details
from quire.server.openai.generation import ChoiceDelta, Generation
from quire.server.openai.origin import origin_of
from quire.server.openai.schema import GenerationRequest
from quire.server.openai.sse import EventStream
from quire.server.openai.wire_format import WireFormat

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left; seen by logs and metrics only."""

MANY_LOGPROBS = 256
"""Tokens whose log-probabilities are made in a thread."""


async def respond(
    http: Request,
    request: GenerationRequest,
    contexts: Sequence[TextContext],
    reply: WireFormat,
    *,
    starts_fresh: bool,
    headers: Mapping[str, str],
) -> Response:
    """The reply to `request`. Its status is decided by the engine's first output.

    Raises:
        ApiError: the engine refused the contexts, or failed before a byte was sent.
    """
    generation = Generation(
        http.app.state.engine,
        contexts,
        reply.tokenizer,
        origin=origin_of(http.scope, request),
        choices_per_prompt=request.n,
        starts_fresh=starts_fresh,
        is_silent=request.token_limit[1] == 0,
        shown_tokens=reply.shown_tokens,
        new_meter=reply.new_meter,
    )
    details = request_details(http.scope)
    details.model = reply.model
    is_handed_over = False
    try:
        generation.close_on_disconnect(http.receive)
        if not await generation.wait_for_output():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if not request.stream:
            return await _whole(generation, reply, headers)
        is_handed_over = True
        return EventStream(
            generation,
            reply,
            heartbeat=http.app.state.settings.stream_heartbeat,
            headers=headers,
        )
    finally:
        if not is_handed_over:
            generation.close()
            generation.describe(details)


async def _whole(generation: Generation, reply: WireFormat, headers: Mapping[str, str]) -> Response:
    deltas: list[list[ChoiceDelta]] = [[] for _ in range(generation.num_choices)]
    while (delta := await generation.next()) is not None:
        deltas[delta.index].append(delta)
    if not generation.is_complete:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    usage = generation.usage
    num_shown = sum(
        len(delta.logprobs) + len(delta.prompt_logprobs or ()) for row in deltas for delta in row
    )
    if num_shown > MANY_LOGPROBS:
        # Spelling them out takes long enough to hold up every stream.
        body = await asyncio.to_thread(lambda: orjson.dumps(reply.whole(deltas, usage)))
    else:
        body = orjson.dumps(reply.whole(deltas, usage))
    return Response(body, media_type="application/json", headers=dict(headers))
