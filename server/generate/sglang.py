"""SGLang's native route: texts or token ids in, text and token ids out."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.pipelines.core.context import TextContext
from quire.server.engine import Engine
from quire.server.errors import InvalidRequest
from quire.server.generate.sglang_format import Asked, SglangFormat
from quire.server.generate.sglang_schema import SamplingParams, SglangRequest
from quire.server.openai.admission import (
    build_contexts,
    check_logprob_cells,
    constraint_of,
    grammar_of,
    tokenize,
)
from quire.server.openai.body import checked, warning_headers
from quire.server.openai.field_names import named_as
from quire.server.openai.prompts import Prompt
from quire.server.openai.respond import respond
from quire.server.openai.schema import CompletionRequest
from quire.server.openai.served import ServedModel

_FIELD_NAMES: Mapping[str, str] = {
    r"structured_outputs\.json": "sampling_params.json_schema",
    r"structured_outputs\.grammar": "sampling_params.ebnf",
    r"structured_outputs\.(regex|structural_tag)": r"sampling_params.\1",
    "prompt_logprobs": "logprob_start_len",
    "max_tokens": "sampling_params.max_new_tokens",
    "min_tokens": "sampling_params.min_new_tokens",
    "(ignore_eos|logit_bias|stop_token_ids)": r"sampling_params.\1",
}
"""Fields of a completion, as they are called here."""


async def generate(http: Request, request: SglangRequest) -> Response:
    """Continue the prompts of a request that has been read."""
    engine: Engine = http.app.state.engine
    served: ServedModel = http.app.state.served
    served.check_generates()
    contexts: list[TextContext] = []
    tokens = [await _token_ids(engine, served, prompt) for prompt in request.prompts]
    with named_as(_FIELD_NAMES):
        for prompt, ids, params in zip(request.prompts, tokens, request.params, strict=True):
            asked = checked(CompletionRequest, _completion(request, prompt, params))
            check_logprob_cells(asked, tokens)
            contexts += build_contexts(
                engine,
                served,
                asked,
                [ids],
                param=request.field,
                default_max_tokens=None,
                grammar=await grammar_of(http, served, asked, await constraint_of(asked)),
            )
    _check_start(request, contexts)
    rids = _ids(request, http.scope["quire.request_id"])
    return await respond(
        http,
        asked,
        contexts,
        SglangFormat(
            served,
            request,
            [
                Asked(rid, context.tokens.prompt.tolist())
                for rid, context in zip(rids, contexts, strict=True)
            ],
            arrival=http.scope["quire.arrival"],
        ),
        starts_fresh=False,
        headers=warning_headers(request),
    )


async def _token_ids(engine: Engine, served: ServedModel, prompt: Prompt) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    return await tokenize(
        engine, "text", lambda max_length: served.tokenizer.encode(prompt, max_tokens=max_length)
    )


def _check_start(request: SglangRequest, contexts: list[TextContext]) -> None:
    shortest = min(context.tokens.prompt_length for context in contexts)
    if request.logprob_start_len > shortest:
        raise InvalidRequest(
            f"'logprob_start_len' must be at most the {shortest} tokens of the prompt, not "
            f"{request.logprob_start_len}",
            param="logprob_start_len",
            code="invalid_value",
        )


def _ids(request: SglangRequest, request_id: str) -> list[str]:
    """The ids of all choices. One that is given for several gets a number for each."""
    given = request.rid or request_id
    count = len(request.prompts)
    of_prompts = given if isinstance(given, list) else [given]
    if len(of_prompts) < count:
        of_prompts = [f"{given}_{index}" for index in range(count)]
    n = request.params[0].n
    if n == 1:
        return of_prompts
    return [f"{rid}_{choice}" for rid in of_prompts for choice in range(n)]


def _completion(request: SglangRequest, prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
    """The same as a completion. Every sampling field is given, so that none is the model's own."""
    fields: dict[str, Any] = {
        name: getattr(params, name)
        for name in SamplingParams.model_fields.keys() & CompletionRequest.model_fields.keys()
    }
    if params.constraint:
        fields["structured_outputs"] = params.constraint
    return {
        **fields,
        "prompt": prompt,
        "max_tokens": params.max_new_tokens,
        # What is asked without a token to generate is the prompt.
        "echo": params.max_new_tokens == 0,
        "min_tokens": params.min_new_tokens,
        "seed": params.sampling_seed,
        "include_stop_str_in_output": params.no_stop_trim,
        "logprobs": request.top_logprobs_num if request.return_logprob else None,
        "prompt_logprobs": request.top_logprobs_num if request.logprob_start_len >= 0 else None,
        "stream": request.stream,
        "timeout": request.timeout,
    }
