"""What becomes of a response that was made: read, its input listed, deleted; and all routes."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from quire.server.errors import InvalidRequest, NotFound, UnsupportedParameter
from quire.server.openai.documented import body, errors, generation, replies
from quire.server.openai.origin import caller_of
from quire.server.openai.responses.create import count_input_tokens, create_response
from quire.server.openai.responses.replies import (
    InputTokens,
    ResponseDeleted,
    ResponseItemList,
    ResponseObject,
    ResponseStreamEvent,
)
from quire.server.openai.responses.schema import (
    ENCRYPTED,
    InputTokensRequest,
    ResponsesRequest,
)
from quire.server.openai.responses.store import ResponseStore, StoredResponse

_REFUSED = "Refused unless it asks for nothing."


async def retrieve_response(
    http: Request,
    response_id: str,
    stream: Annotated[bool, Query(description=_REFUSED)] = False,
    starting_after: Annotated[int | None, Query(description=_REFUSED)] = None,
    include: Annotated[list[str] | None, Query(alias="include[]", description=_REFUSED)] = None,
) -> Response:
    """A response that was kept, as it was sent."""
    found = _found(http, response_id)
    if stream or starting_after is not None:
        name = "stream" if stream else "starting_after"
        raise UnsupportedParameter(name, "a kept response is given whole; its events are not kept")
    _check_include(include, "ask for it when the response is made")
    return Response(found.body, media_type="application/json")


async def delete_response(http: Request, response_id: str) -> Response:
    """Forget a response; those that follow it cannot be gone on from any more."""
    store: ResponseStore = http.app.state.responses
    if not store.delete(caller_of(http.scope), response_id):
        raise _not_found(response_id)
    deleted: ResponseDeleted = {"id": response_id, "object": "response", "deleted": True}
    return JSONResponse(deleted)


async def list_input_items(
    http: Request,
    response_id: str,
    limit: Annotated[int, Query(ge=1, le=100, description="Of a page.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By place.")] = "desc",
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    include: Annotated[list[str] | None, Query(alias="include[]", description=_REFUSED)] = None,
) -> Response:
    """The items of a response's own input, not of the responses that it followed."""
    _check_include(include, "items are listed whole")
    items: list[dict[str, Any]] = orjson.loads(_found(http, response_id).input)
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest(
                "'after' is no item of this response's input", param="after", code="invalid_value"
            )
        items = items[places[0] + 1 :]
    shown = items[:limit]
    page = {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > limit,
    }
    return Response(orjson.dumps(page), media_type="application/json")


async def cancel_response(http: Request, response_id: str) -> Response:
    """Always refused: there is nothing in the background."""
    _found(http, response_id)
    raise InvalidRequest(
        "Only responses made with background can be cancelled, and this server makes none; close "
        "the connection to end one",
        param="response_id",
        code="not_cancellable",
    )


def add_responses_routes(router: APIRouter) -> None:
    """Add the routes, below /v1."""
    router.add_api_route(
        "/responses",
        create_response,
        methods=["POST"],
        response_model=None,
        responses=replies(
            ResponseObject, "OpenAI's typed events, without [DONE]", event=ResponseStreamEvent
        ),
        openapi_extra=generation(ResponsesRequest),
    )
    router.add_api_route(
        "/responses/input_tokens",
        count_input_tokens,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": InputTokens}, **errors(400, 401, 404, 408, 413, 415, 503)},
        openapi_extra=body(InputTokensRequest),
    )
    for path, method, endpoint, reply in (
        ("", "GET", retrieve_response, ResponseObject),
        ("", "DELETE", delete_response, ResponseDeleted),
        ("/input_items", "GET", list_input_items, ResponseItemList),
        ("/cancel", "POST", cancel_response, ResponseObject),
    ):
        router.add_api_route(
            f"/responses/{{response_id}}{path}",
            endpoint,
            methods=[method],
            response_model=None,
            responses={200: {"model": reply}, **errors(400, 401, 404, 503)},
        )


def _check_include(include: list[str] | None, hint: str) -> None:
    if set(include or ()) - {ENCRYPTED}:
        raise UnsupportedParameter("include", hint)


def _found(http: Request, response_id: str) -> StoredResponse:
    store: ResponseStore = http.app.state.responses
    found = store.find(caller_of(http.scope), response_id)
    if found is None:
        raise _not_found(response_id)
    return found


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"Response with id '{response_id}' not found.", param="response_id")
