"""The native routes of other servers, for clients that were written for them."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.server.error_bodies import ERROR_BODY, openai_body
from quire.server.errors import InvalidRequest
from quire.server.generate import sglang, sglang_format, tgi, tgi_format
from quire.server.generate.error_body import ErrorReply
from quire.server.generate.sglang_schema import SglangRequest
from quire.server.generate.tgi_schema import GenerateRequest
from quire.server.openai.admission import check_room
from quire.server.openai.body import read_request
from quire.server.openai.documented import errors, generation, replies
from quire.server.openai.replies import ErrorReply as OpenAIErrorReply


async def generate(http: Request) -> Response:
    """What text-generation-inference makes of `inputs`, and SGLang of `text` or `input_ids`."""

    def kind(body: Mapping[str, Any]) -> type[GenerateRequest] | type[SglangRequest]:
        names = [name for name in ("inputs", "text", "input_ids") if body.get(name) is not None]
        if not names or len(names) > 1 and "inputs" in names:
            raise InvalidRequest(
                "One of 'inputs' (as text-generation-inference has it) and 'text' or 'input_ids' "
                f"(as SGLang has it) is needed, not {' and '.join(names) or 'none'}",
                param="inputs",
                code="invalid_value" if names else "missing_field",
            )
        if names == ["inputs"]:
            return GenerateRequest
        http.scope[ERROR_BODY] = openai_body
        return SglangRequest

    check_room(http)
    request: GenerateRequest | SglangRequest = await read_request(http, kind)
    if isinstance(request, GenerateRequest):
        return await tgi.generate(http, request)
    return await sglang.generate(http, request)


def build_generate_router() -> APIRouter:
    """/generate, and the others of text-generation-inference."""
    router = APIRouter(tags=["native"])
    events = "A token each, or an error"
    one, several = sglang_format.Generated, list[sglang_format.Generated]
    router.add_api_route(
        "/generate",
        generate,
        methods=["POST"],
        response_model=None,
        responses=replies(
            tgi_format.Generated | one | several,
            f"{events}, or the reply so far, and [DONE]",
            event=tgi_format.StreamedToken | one,
            error=ErrorReply | OpenAIErrorReply,
        ),
        openapi_extra=generation(GenerateRequest, SglangRequest),
    )
    router.add_api_route(
        "/generate_stream",
        tgi.generate_stream,
        methods=["POST"],
        response_model=None,
        responses=replies(
            tgi_format.Generated, events, event=tgi_format.StreamedToken, error=ErrorReply
        ),
        openapi_extra=generation(GenerateRequest),
    )
    router.add_api_route(
        "/",
        tgi.generate_compat,
        methods=["POST"],
        response_model=None,
        responses=replies(
            list[tgi_format.Generated],
            events,
            event=tgi_format.StreamedToken,
            error=ErrorReply | OpenAIErrorReply,
        ),
        openapi_extra=generation(GenerateRequest),
    )
    router.add_api_route(
        "/info", tgi.show_info, methods=["GET"], responses=errors(400, 401, 503, model=ErrorReply)
    )
    return router
