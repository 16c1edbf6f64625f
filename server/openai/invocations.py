"""POST /invocations: where SageMaker sends a chat, a completions or an embeddings request."""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion
from quire.server.openai.embeddings import create_embedding


async def invoke(http: Request) -> Response:
    """A chat completion if the body has `messages`, embeddings if it has `input`, else a
    completion, with its errors."""
    try:
        body = orjson.loads(await http.body())
    except orjson.JSONDecodeError:
        body = None
    given = body if isinstance(body, dict) else {}
    if given.get("messages") is not None:
        return await create_chat_completion(http)
    if given.get("input") is not None:
        return await create_embedding(http)
    return await create_completion(http)
