"""POST /v1/messages and POST /v1/messages/count_tokens."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from quire.server.anthropic.conversion import FIELD_NAMES, chat_request
from quire.server.anthropic.message_format import MessageFormat
from quire.server.anthropic.replies import TokenCount
from quire.server.anthropic.schema import CountTokensRequest, MessagesRequest
from quire.server.engine import Engine
from quire.server.openai.admission import check_room
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.field_names import named_as, renamed
from quire.server.openai.prepare_chat import counted_prompt, prepare_chat
from quire.server.openai.respond import respond
from quire.server.openai.served import ServedModel


async def create_message(http: Request) -> Response:
    """Generate the next message of a conversation."""
    check_room(http)
    served: ServedModel = http.app.state.served
    request = await read_request(http, MessagesRequest)
    served.resolve(request.model)
    with named_as(FIELD_NAMES):
        asked = await asyncio.to_thread(chat_request, request, served)
        chat = await prepare_chat(http, asked, default_max_tokens=request.max_tokens)
    warnings = [renamed(warning, FIELD_NAMES) for warning in chat.warnings]
    budget = None if request.thinking is None else request.thinking.budget_tokens
    if budget is not None and asked.thinking_token_budget is None and budget < request.max_tokens:
        warnings.append("thinking.budget_tokens is not enforced: no one token ends the reasoning")
    return await respond(
        http,
        asked,
        chat.contexts,
        MessageFormat(
            served,
            chat.model,
            plan=chat.plan,
            max_tokens=request.max_tokens,
            shows_thinking=request.thinking is None or request.thinking.display != "omitted",
        ),
        starts_fresh=not asked.continue_final_message,
        headers=warning_headers(request, *warnings),
    )


async def count_tokens(http: Request) -> Response:
    """The tokens of the prompt that the same fields make for a message."""
    engine: Engine = http.app.state.engine
    engine.check_available()
    request = await read_request(http, CountTokensRequest)
    with named_as(FIELD_NAMES):
        asked = await asyncio.to_thread(chat_request, request, http.app.state.served)
        prompt = await counted_prompt(http, asked)
    reply: TokenCount = {"input_tokens": len(prompt.ids)}
    return JSONResponse(reply, headers=warning_headers(request, *prompt.warnings))
