"""POST /tokenize, POST /detokenize and GET /tokenizer_info, as vLLM has them."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from quire.pipelines.tokenizer import TextTokenizer
from quire.server.engine import Engine
from quire.server.errors import InvalidRequest
from quire.server.openai.admission import check_token, tokenize
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.chat_prompt import chat_prompt
from quire.server.openai.replies import Detokenized, Tokenized, TokenizerInfo
from quire.server.openai.schema import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizePromptRequest,
)
from quire.server.openai.served import ServedModel


async def tokenize_text(http: Request) -> Response:
    """The token ids of a prompt, or of a conversation as its template writes it."""
    engine, served = _serving(http)
    request: TokenizePromptRequest | TokenizeChatRequest = await read_request(http, _kind)
    served.resolve(request.model)
    if isinstance(request, TokenizeChatRequest):
        prompt = await chat_prompt(engine, served, request, tools=request.tools)
        ids, odd = prompt.ids, prompt.warnings
    else:
        text, special, odd = request.prompt, request.add_special_tokens, []
        if served.embedding is not None:
            text = served.embedding.text(text)
        ids = await tokenize(
            engine,
            "prompt",
            lambda max_length: served.tokenizer.encode(text, special, max_tokens=max_length),
        )
    spelled = None
    if request.return_token_strs:
        spelled = await asyncio.to_thread(
            lambda: [served.tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids]
        )
    reply: Tokenized = {
        "count": len(ids),
        "max_model_len": engine.max_length,
        "tokens": ids,
        "token_strs": spelled,
    }
    return JSONResponse(reply, headers=warning_headers(request, *odd))


async def detokenize_ids(http: Request) -> Response:
    """The text of token ids, control tokens included."""
    _, served = _serving(http)
    request = await read_request(http, DetokenizeRequest)
    served.resolve(request.model)
    if request.tokens:
        check_token(max(request.tokens), served, "tokens")
    text = await asyncio.to_thread(
        served.tokenizer.decode, request.tokens, skip_special_tokens=False
    )
    reply: Detokenized = {"prompt": text}
    return JSONResponse(reply, headers=warning_headers(request))


async def show_tokenizer(http: Request) -> TokenizerInfo:
    """What a client needs to count and to format as this server does."""
    engine, served = _serving(http)
    tokenizer, template = served.tokenizer, served.tokenizer.chat_template
    return {
        "vocab_size": tokenizer.vocab_size,
        "model_vocab_size": served.vocab_size,
        "max_model_len": engine.max_length,
        "bos_token": _spelled(tokenizer, tokenizer.bos_token_id),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token": _spelled(tokenizer, tokenizer.eos_token_id),
        "eos_token_ids": list(served.eos_token_ids),
        "special_tokens": {
            tokenizer.token_bytes(id).decode("utf-8", "replace"): id
            for id in sorted(tokenizer.special_token_ids)
        },
        "chat_template": None if template is None else template.source,
    }


def add_tokenization_routes(router: APIRouter, describe: Any, errors: Mapping[Any, Any]) -> None:
    """The routes of this module; `describe` documents a request body of several kinds."""
    router.add_api_route(
        "/tokenize",
        tokenize_text,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": Tokenized}, **errors},
        openapi_extra=describe(TokenizePromptRequest, TokenizeChatRequest),
    )
    router.add_api_route(
        "/detokenize",
        detokenize_ids,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": Detokenized}, **errors},
        openapi_extra=describe(DetokenizeRequest),
    )
    router.add_api_route("/tokenizer_info", show_tokenizer, methods=["GET"], responses=dict(errors))


def _spelled(tokenizer: TextTokenizer, id: int | None) -> str | None:
    return None if id is None else tokenizer.token_bytes(id).decode("utf-8", "replace")


def _kind(
    body: Mapping[str, Any],
) -> type[TokenizePromptRequest] | type[TokenizeChatRequest]:
    given = [name for name in ("prompt", "messages") if body.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"Exactly one of 'prompt' and 'messages' is needed, got {' and '.join(given) or 'none'}",
            param="prompt",
            code="missing_field" if not given else "invalid_value",
        )
    return TokenizePromptRequest if given == ["prompt"] else TokenizeChatRequest


def _serving(http: Request) -> tuple[Engine, ServedModel]:
    engine: Engine = http.app.state.engine
    engine.check_available()
    return engine, http.app.state.served
