"""The OpenAI routes and their documentation.

The endpoints read from `app.state`: `engine` (`Engine`), `served` (`ServedModel`, from the time the
engine is available) and `settings` (`ServeSettings`).
"""

from typing import Any

from fastapi import APIRouter

from quire.config.limits import LIMITS
from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion
from quire.server.openai.embeddings import create_embedding
from quire.server.openai.invocations import invoke
from quire.server.openai.models import list_models, retrieve_model
from quire.server.openai.replies import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    EmbeddingList,
    ErrorReply,
)
from quire.server.openai.request_model import RequestModel
from quire.server.openai.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from quire.server.openai.tokenization import add_tokenization_routes

_ERRORS = {
    400: "A field is wrong, or not supported.",
    401: "No valid API key.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The queue is full, or the key has too many requests; see Retry-After.",
    500: "The model failed on this request.",
    503: "Not ready, or shutting down; see Retry-After.",
    504: "The request's own time limit passed.",
}
_MODEL_ERRORS = (401, 404, 503)
_TIMEOUT_HEADER = {
    "name": "x-request-timeout",
    "in": "header",
    "description": "Seconds after which the request is given up; the shorter of this and timeout.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": LIMITS.timeout_seconds},
}


def build_router() -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["openai"])
    router.add_api_route(
        "/chat/completions",
        create_chat_completion,
        methods=["POST"],
        response_model=None,
        responses=_responses(ChatCompletion, ChatCompletionChunk),
        openapi_extra=_generation(ChatCompletionRequest),
    )
    router.add_api_route(
        "/completions",
        create_completion,
        methods=["POST"],
        response_model=None,
        responses=_responses(Completion, Completion),
        openapi_extra=_generation(CompletionRequest),
    )
    router.add_api_route(
        "/embeddings",
        create_embedding,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": EmbeddingList}, **{status: _error(status) for status in _ERRORS}},
        openapi_extra=_generation(EmbeddingRequest),
    )
    errors: dict[int | str, dict[str, Any]] = {status: _error(status) for status in _MODEL_ERRORS}
    router.add_api_route("/models", list_models, methods=["GET"], responses=errors)
    router.add_api_route(
        "/models/{model_id:path}", retrieve_model, methods=["GET"], responses=errors
    )
    return router


def build_root_router() -> APIRouter:
    """The routes that clients of vLLM and SageMaker expect outside /v1."""
    router = APIRouter(tags=["tokens"])
    add_tokenization_routes(
        router, _body, {status: _error(status) for status in (400, 408, 413, 415, *_MODEL_ERRORS)}
    )
    router.add_api_route(
        "/invocations",
        invoke,
        methods=["POST"],
        response_model=None,
        responses=_responses(ChatCompletion | Completion | EmbeddingList, ChatCompletionChunk),
        openapi_extra=_generation(ChatCompletionRequest, CompletionRequest, EmbeddingRequest),
    )
    return router


def _responses(whole: Any, chunk: Any) -> dict[int | str, dict[str, Any]]:
    stream = {"schema": {"type": "string", "description": f"events of {chunk.__name__}, [DONE]"}}
    return {
        200: {"model": whole, "content": {"text/event-stream": stream}},
        **{status: _error(status) for status in _ERRORS},
    }


def _error(status: int) -> dict[str, Any]:
    return {"model": ErrorReply, "description": _ERRORS[status]}


def _generation(*kinds: type[RequestModel]) -> dict[str, Any]:
    """A request body, and the header that says how long its reply may take."""
    return {**_body(*kinds), "parameters": [_TIMEOUT_HEADER]}


def _body(*kinds: type[RequestModel]) -> dict[str, Any]:
    schemas = []
    for kind in kinds:
        schema = kind.model_json_schema()
        definitions = schema.pop("$defs", {})
        schemas.append(_inlined(schema, definitions))
    body = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """`schema` with its references replaced by what they mean; none of ours is recursive."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
