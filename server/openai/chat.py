"""POST /v1/chat/completions."""

from starlette.requests import Request
from starlette.responses import Response

from quire.server.openai.admission import check_room
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.chat_format import ChatFormat
from quire.server.openai.prepare_chat import prepare_chat
from quire.server.openai.respond import respond
from quire.server.openai.schema import ChatCompletionRequest


async def create_chat_completion(http: Request) -> Response:
    """Generate replies to a conversation."""
    check_room(http)
    request = await read_request(http, ChatCompletionRequest)
    chat = await prepare_chat(http, request)
    return await respond(
        http,
        request,
        chat.contexts,
        ChatFormat(
            chat.served,
            chat.model,
            request,
            chat.prompt_ids,
            plan=chat.plan,
            reasoning_field=http.app.state.settings.reasoning_field,
        ),
        starts_fresh=not request.continue_final_message,
        headers=warning_headers(request, *chat.warnings),
    )
