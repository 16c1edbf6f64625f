"""The routes of the Messages API."""

from fastapi import APIRouter

from quire.server.anthropic.error_body import ErrorReply
from quire.server.anthropic.messages import count_tokens, create_message
from quire.server.anthropic.replies import Event, Message, TokenCount
from quire.server.anthropic.schema import CountTokensRequest, MessagesRequest
from quire.server.openai.documented import body, generation, replies


def build_messages_router() -> APIRouter:
    """The routes under /v1/messages."""
    router = APIRouter(prefix="/v1/messages", tags=["anthropic"])
    router.add_api_route(
        "",
        create_message,
        methods=["POST"],
        response_model=None,
        responses=replies(Message, "message_start .. message_stop", event=Event, error=ErrorReply),
        openapi_extra=generation(MessagesRequest),
    )
    router.add_api_route(
        "/count_tokens",
        count_tokens,
        methods=["POST"],
        response_model=None,
        responses=replies(TokenCount, error=ErrorReply),
        openapi_extra=body(CountTokensRequest),
    )
    return router
