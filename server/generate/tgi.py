"""text-generation-inference's routes: POST /generate, POST /generate_stream, POST / and GET /info."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from quire.config.limits import LIMITS
from quire.server.engine import Engine
from quire.server.error_bodies import ERROR_BODY
from quire.server.errors import InvalidRequest
from quire.server.generate.error_body import tgi_body
from quire.server.generate.tgi_format import TgiFormat
from quire.server.generate.tgi_schema import GenerateRequest
from quire.server.openai.admission import (
    build_contexts,
    check_room,
    constraint_of,
    grammar_of,
    tokenize,
)
from quire.server.openai.body import checked, read_request, warning_headers
from quire.server.openai.field_names import named_as
from quire.server.openai.respond import respond
from quire.server.openai.schema import CompletionRequest
from quire.server.openai.served import ServedModel

_FIELD_NAMES: Mapping[str, str] = {
    r"structured_outputs\.(json|regex)": "parameters.grammar.value",
    "prompt_logprobs": "parameters.decoder_input_details",
    "max_tokens": "parameters.max_new_tokens",
    "prompt": "inputs",
}
"""Fields of a completion, as they are called here."""


class Info(TypedDict):
    model_id: str
    model_sha: None
    model_pipeline_tag: str
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    router: str
    version: str


async def generate(http: Request, request: GenerateRequest, *, in_list: bool = False) -> Response:
    """Continue a text, whose request has been read. `in_list`: a whole reply is the one of a list."""
    engine: Engine = http.app.state.engine
    served: ServedModel = http.app.state.served
    served.check_generates()
    parameters = request.parameters
    with named_as(_FIELD_NAMES):
        asked = checked(CompletionRequest, _completion(request))
        ids = await tokenize(
            engine,
            "inputs",
            lambda max_length: served.tokenizer.encode(request.inputs, max_tokens=max_length),
            is_cut=parameters.truncate is not None,
        )
        contexts = build_contexts(
            engine,
            served,
            asked,
            [ids],
            param="inputs",
            default_max_tokens=None,
            grammar=await grammar_of(http, served, asked, await constraint_of(asked)),
        )
    context = contexts[0]
    return await respond(
        http,
        asked,
        contexts,
        TgiFormat(
            served,
            parameters,
            inputs=request.inputs,
            prompt=context.tokens.prompt.tolist(),
            seed=context.params.seed if parameters.samples else None,
            in_list=in_list,
        ),
        starts_fresh=False,
        headers=warning_headers(request),
    )


async def generate_stream(http: Request) -> Response:
    """Continue a text, token by token."""
    check_room(http)
    request = await read_request(http, GenerateRequest)
    if not request.stream and "stream" in request.model_fields_set:
        raise InvalidRequest(
            "'stream' must not be false on this route; use /generate",
            param="stream",
            code="invalid_value",
        )
    return await generate(http, request.model_copy(update={"stream": True}))


async def generate_compat(http: Request) -> Response:
    """As /generate, with a whole reply in a list, as Hugging Face's Inference API has it."""
    http.scope[ERROR_BODY] = tgi_body
    check_room(http)
    return await generate(http, await read_request(http, GenerateRequest), in_list=True)


async def show_info(http: Request) -> Info:
    """What is served."""
    engine: Engine = http.app.state.engine
    engine.check_available()
    served: ServedModel = http.app.state.served
    served.check_generates()
    return {
        "model_id": served.names[0],
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_best_of": 1,
        "max_stop_sequences": LIMITS.stop_strings,
        "max_input_tokens": engine.max_length - 1,
        "max_total_tokens": engine.max_length,
        "max_client_batch_size": 1,
        "router": "quire",
        "version": version("quire"),
    }


def _completion(request: GenerateRequest) -> dict[str, Any]:
    """The same as a completion. Every sampling field is given, so that none is the model's own."""
    parameters = request.parameters
    if parameters.decoder_input_details and request.stream:
        raise InvalidRequest(
            "'parameters.decoder_input_details' needs stream to be false",
            param="parameters.decoder_input_details",
            code="invalid_value",
        )
    tells_tokens = request.stream or parameters.details or parameters.decoder_input_details
    fields: dict[str, Any] = {
        "prompt": request.inputs,
        "max_tokens": parameters.max_new_tokens,
        "temperature": parameters.temperature if parameters.samples else 0.0,
        "top_k": parameters.top_k or -1,
        "top_p": parameters.top_p or 1.0,
        "min_p": 0.0,
        "repetition_penalty": parameters.repetition_penalty,
        "frequency_penalty": parameters.frequency_penalty,
        "seed": parameters.seed,
        "stop": parameters.stop,
        "include_stop_str_in_output": True,
        "truncate_prompt_tokens": parameters.truncate,
        "logprobs": parameters.top_n_tokens if tells_tokens else None,
        "prompt_logprobs": 0 if parameters.decoder_input_details else None,
        "stream": request.stream,
        "timeout": request.timeout,
    }
    if parameters.grammar is not None:
        fields["structured_outputs"] = parameters.grammar.constraint
    return fields
