"""POST /v1/responses and POST /v1/responses/input_tokens."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from quire.config.limits import LIMITS
from quire.server.engine import Engine
from quire.server.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from quire.server.openai.admission import check_room
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.field_names import named_as, renamed
from quire.server.openai.origin import caller_of
from quire.server.openai.prepare_chat import (
    PreparedChat,
    counted_prompt,
    prepare_chat,
)
from quire.server.openai.respond import respond
from quire.server.openai.responses.conversation import Messages, add_all
from quire.server.openai.responses.format import ResponsesFormat
from quire.server.openai.responses.items import KeptItem, kept_items
from quire.server.openai.responses.replies import InputTokens
from quire.server.openai.responses.schema import (
    ChatOfResponse,
    InputTokensRequest,
    ResponseInput,
    ResponsesRequest,
    chat_request,
)
from quire.server.openai.responses.store import ResponseStore, StoredResponse

NAMES: Mapping[str, str] = {
    r"tools\.(\d+)\.function": r"tools.\1",
    r"response_format\.json_schema\.schema": "text.format.schema",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""A chat's fields as this route calls them."""


async def create_response(http: Request) -> Response:
    """Generate a reply to items, and to the response that they follow."""
    check_room(http)
    request = await read_request(http, ResponsesRequest)
    store: ResponseStore = http.app.state.responses
    caller = caller_of(http.scope)
    response_id = f"resp_{uuid.uuid4().hex}"
    earlier = _earlier(http, request)
    is_stored = _is_stored(store, request)
    messages, items = await asyncio.to_thread(_read_items, request, earlier)
    with named_as(NAMES):
        chat, prepared, told = await _prepared(http, request, messages)

    def keep(body: bytes) -> None:
        if is_stored:
            kept = StoredResponse(
                id=response_id,
                previous_id=request.previous_response_id,
                input=orjson.dumps(items),
                body=body,
            )
            store.put(caller, kept)

    warnings = [renamed(messages.renamed(text), NAMES) for text in prepared.warnings]
    response = await respond(
        http,
        chat,
        prepared.contexts,
        ResponsesFormat(
            response_id,
            request,
            prepared,
            is_stored=is_stored,
            keep=lambda reply: keep(orjson.dumps(reply)),
        ),
        starts_fresh=True,
        headers=warning_headers(request, *warnings, *told),
    )
    if not request.stream and response.status_code == 200:
        keep(bytes(response.body))
    return response


async def count_input_tokens(http: Request) -> Response:
    """The tokens of the prompt that the same fields make for a response."""
    engine: Engine = http.app.state.engine
    engine.check_available()
    request = await read_request(http, InputTokensRequest)
    messages, _ = await asyncio.to_thread(_read_items, request, _earlier(http, request))
    with named_as(NAMES):
        prompt = await counted_prompt(http, chat_request(request, messages.without(0)))
    warnings = [renamed(messages.renamed(text), NAMES) for text in prompt.warnings]
    counted: InputTokens = {"object": "response.input_tokens", "input_tokens": len(prompt.ids)}
    return JSONResponse(counted, headers=warning_headers(request, *warnings))


async def _prepared(
    http: Request, request: ResponsesRequest, messages: Messages
) -> tuple[ChatOfResponse, PreparedChat, list[str]]:
    """The chat of a request, and what the client should be warned of: if `truncation` says so, with
    as few of the oldest messages left out as must be.

    Raises:
        ContextLengthExceeded: it does not fit.
        ApiError: as `prepare_chat`.
    """
    warnings: list[str] = []
    if request.text.verbosity != "medium":
        warnings.append("text.verbosity has no effect: the model has no such setting")
    chat = chat_request(request, messages.without(0))
    try:
        return chat, await prepare_chat(http, chat), warnings
    except ContextLengthExceeded as error:
        if request.truncation == "disabled":
            raise
        failure = error
    counts = messages.beginnings
    found: tuple[ChatOfResponse, PreparedChat] | None = None
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        chat = chat_request(request, messages.without(counts[middle]))
        try:
            found, high = (chat, await prepare_chat(http, chat)), middle
        except ContextLengthExceeded:
            low = middle + 1
    if found is None:
        raise failure
    messages.without(counts[high])
    warnings.append(f"truncation: the oldest {counts[high]} messages were left out")
    return *found, warnings


def _earlier(http: Request, request: ResponseInput) -> list[StoredResponse]:
    """The responses that this one follows, oldest first: no more input than one body may bring."""
    if request.previous_response_id is None:
        return []
    store: ResponseStore = http.app.state.responses
    try:
        chain = store.chain(caller_of(http.scope), request.previous_response_id)
    except KeyError as missing:
        (response_id,) = missing.args
        raise InvalidRequest(
            f"Previous response with id '{response_id}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        ) from None
    limit = http.app.state.settings.max_request_bytes
    if (size := sum(len(response.input) for response in chain)) > limit:
        raise InvalidRequest(
            f"'previous_response_id': the input of the responses up to it has {size} bytes; the "
            f"limit is {limit} (max_request_bytes)",
            param="previous_response_id",
            code="invalid_value",
        )
    return chain


def _is_stored(store: ResponseStore, request: ResponsesRequest) -> bool:
    if request.store and not store.is_on and "store" in request.model_fields_set:
        raise UnsupportedParameter("store", "this server keeps no responses")
    return request.store and store.is_on


def _read_items(
    request: ResponseInput, earlier: Sequence[StoredResponse]
) -> tuple[Messages, list[KeptItem]]:
    """All messages up to now, and the items of this request alone."""
    messages = Messages()
    if request.instructions is not None:
        messages.instruct(request.instructions)
    count = 0
    for response in earlier:
        items = [*orjson.loads(response.input), *orjson.loads(response.body)["output"]]
        count += len(items)
        add_all(messages, items)
    own = kept_items(request.input)
    count += len(own)
    if count > LIMITS.messages:
        raise InvalidRequest(
            f"'input' and the responses before it have {count} items; the limit is "
            f"{LIMITS.messages}",
            param="input",
            code="invalid_value",
        )
    add_all(messages, own, "input")
    messages.finish()
    return messages, own
