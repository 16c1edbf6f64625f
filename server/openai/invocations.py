"""POST /invocations: where SageMaker sends a chat or a completions request."""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion


async def invoke(http: Request) -> Response:
    """A chat completion if the body has `messages`, else a completion, with its errors."""
    try:
        body = orjson.loads(await http.body())
    except orjson.JSONDecodeError:
        body = None
    is_chat = isinstance(body, dict) and body.get("messages") is not None
    return await (create_chat_completion if is_chat else create_completion)(http)
