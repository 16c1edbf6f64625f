"""The OpenAI routes and their documentation.

The endpoints read from `app.state`: `engine` (`Engine`), `served` (`ServedModel`, from the time the
engine is available) and `settings` (`ServeSettings`).
"""

from typing import Any

from fastapi import APIRouter

from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion
from quire.server.openai.documented import Responses, body, errors, generation, replies
from quire.server.openai.embeddings import create_embedding
from quire.server.openai.invocations import invoke
from quire.server.openai.models import list_models, retrieve_model
from quire.server.openai.replies import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    EmbeddingList,
)
from quire.server.openai.responses.routes import add_responses_routes
from quire.server.openai.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from quire.server.openai.tokenization import add_tokenization_routes

_MODEL_ERRORS = (401, 404, 503)


def build_router() -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["openai"])
    router.add_api_route(
        "/chat/completions",
        create_chat_completion,
        methods=["POST"],
        response_model=None,
        responses=_replies(ChatCompletion, ChatCompletionChunk),
        openapi_extra=generation(ChatCompletionRequest),
    )
    router.add_api_route(
        "/completions",
        create_completion,
        methods=["POST"],
        response_model=None,
        responses=_replies(Completion, Completion),
        openapi_extra=generation(CompletionRequest),
    )
    router.add_api_route(
        "/embeddings",
        create_embedding,
        methods=["POST"],
        response_model=None,
        responses=replies(EmbeddingList),
        openapi_extra=generation(EmbeddingRequest),
    )
    add_responses_routes(router)
    told = errors(*_MODEL_ERRORS)
    router.add_api_route("/models", list_models, methods=["GET"], responses=told)
    router.add_api_route("/models/{model_id:path}", retrieve_model, methods=["GET"], responses=told)
    return router


def build_root_router() -> APIRouter:
    """The routes that clients of vLLM and SageMaker expect outside /v1."""
    router = APIRouter(tags=["tokens"])
    add_tokenization_routes(router, body, errors(400, 408, 413, 415, *_MODEL_ERRORS))
    router.add_api_route(
        "/invocations",
        invoke,
        methods=["POST"],
        response_model=None,
        responses=_replies(
            ChatCompletion | Completion | EmbeddingList, ChatCompletionChunk | Completion
        ),
        openapi_extra=generation(ChatCompletionRequest, CompletionRequest, EmbeddingRequest),
    )
    return router


def _replies(whole: Any, chunk: Any) -> Responses:
    return replies(whole, "Chunks, or an error, and [DONE]", event=chunk)
