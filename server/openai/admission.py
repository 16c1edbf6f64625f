"""From a checked request to contexts: token ids, room in the context, the seed."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request

from quire.config.limits import LIMITS
from quire.pipelines.chat_template import TextTooLong
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.grammar import Grammar, GrammarSpec
from quire.pipelines.core.sampling_params import MAX_SEED, SamplingParams, ThinkingBudget
from quire.server.engine import Engine
from quire.server.errors import (
    ClientLeft,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
)
from quire.server.openai.body import disconnect
from quire.server.openai.origin import caller_of, origin_of
from quire.server.openai.schema import GenerationRequest
from quire.server.openai.served import ServedModel
from quire.server.openai.structured import compiled_grammar, grammar_spec


def check_room(http: Request) -> None:
    """To be called before a body is read.

    Raises:
        Overloaded, EngineUnavailable: nothing could be admitted now.
    """
    engine: Engine = http.app.state.engine
    engine.check_room(caller_of(http.scope))


async def tokenize(
    engine: Engine, param: str, work: Callable[[int | None], list[int]], *, is_cut: bool = False
) -> list[int]:
    """The prompt's ids by `work(max_length)`, off the event loop; any number if it `is_cut` later.

    Raises:
        ContextLengthExceeded: the text is too long to be tokenized at all.
        InvalidRequest: the chat template refused it.
    """
    limit = engine.max_length
    try:
        return await asyncio.to_thread(work, None if is_cut else limit)
    except TextTooLong as error:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens, but '{param}' has {error}",
            param=param,
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"'{param}': {error}", param=param, code="invalid_value") from None


def build_contexts(
    engine: Engine,
    served: ServedModel,
    request: GenerationRequest,
    prompts: Sequence[Sequence[int]],
    *,
    param: str,
    default_max_tokens: int | None,
    grammar: Grammar | None = None,
    thinking: ThinkingBudget | None = None,
) -> list[TextContext]:
    """One context per prompt and choice: prompt 0's choices, prompt 1's, ...

    `param` is the field that holds the prompts. `default_max_tokens` counts when the request sets
    no limit, and is cut to the room there is; None means all of it.

    Raises:
        ContextLengthExceeded: a prompt leaves no room, or not the room explicitly asked for.
        InvalidRequest: a prompt is empty, or a token id is not in the vocabulary.
    """
    for field, tokens in (
        ("stop_token_ids", request.stop_token_ids),
        ("allowed_token_ids", request.allowed_token_ids or ()),
        ("logit_bias", map(int, request.logit_bias)),
    ):
        for token in tokens:
            check_token(token, served, field)
    _check_allowed_tokens(served, request)
    kept: list[Sequence[int]] = []
    for ids in prompts:
        if not ids:
            raise InvalidRequest(f"'{param}' must not be empty", param=param, code="invalid_value")
        for token in (min(ids), max(ids)):
            check_token(token, served, param)
        kept.append(_cut(ids, request, engine.max_length))
    check_logprob_cells(request, kept)
    contexts: list[TextContext] = []
    for ids in kept:
        limit = _output_limit(engine.max_length, len(ids), request, param)
        # A prompt that is only to be told still samples the one token that ends the context.
        most = default_max_tokens if limit is None else max(1, limit)
        params = _sampling_params(served, request, most)
        params = msgspec.structs.replace(params, thinking=thinking)
        _check_min_tokens(params, engine.max_length - len(ids))
        prompt = np.asarray(ids, dtype=np.int32)
        contexts += [
            TextContext(
                engine.new_request_id(),
                prompt,
                params,
                max_length=engine.max_length,
                choice=choice,
                eos_token_ids=served.eos_token_ids,
                priority=request.priority,
                cache_salt=(request.cache_salt or "").encode(),
                grammar=grammar,
            )
            for choice in range(request.n)
        ]
    return contexts


def _check_allowed_tokens(served: ServedModel, request: GenerationRequest) -> None:
    ends = {*request.stop_token_ids, *(() if request.ignore_eos else served.eos_token_ids)}
    if (
        request.allowed_token_ids
        and request.min_tokens
        and ends.issuperset(request.allowed_token_ids)
    ):
        raise InvalidRequest(
            "'allowed_token_ids' must hold a token that does not end the output, since 'min_tokens' "
            f"is {request.min_tokens}",
            param="allowed_token_ids",
            code="invalid_value",
        )


def check_logprob_cells(request: GenerationRequest, prompts: Sequence[Sequence[int]]) -> None:
    """Raises InvalidRequest where the log-probabilities of the prompts are too many."""
    if request.num_prompt_logprobs is None:
        return
    per_token = request.n * (request.num_prompt_logprobs + 1)
    cells = per_token * sum(map(len, prompts))
    if cells > LIMITS.logprob_cells:
        param = "prompt_logprobs" if request.prompt_logprobs is not None else "logprobs"
        raise InvalidRequest(
            f"'{param}': those of the prompts are {cells} values; the limit of a request is "
            f"{LIMITS.logprob_cells}",
            param=param,
            code="invalid_value",
        )


def _cut(ids: Sequence[int], request: GenerationRequest, max_length: int) -> Sequence[int]:
    """The part of a prompt that `truncate_prompt_tokens` keeps."""
    kept = request.truncate_prompt_tokens
    if kept is None:
        return ids
    if kept == -1:
        _, limit = request.token_limit
        kept = max(1, max_length - max(1, limit or request.min_tokens))
    if kept >= len(ids):
        return ids
    return ids[:kept] if request.truncation_side == "right" else ids[len(ids) - kept :]


def check_token(token: int, served: ServedModel, param: str) -> None:
    """Raises InvalidRequest unless the id is in the vocabulary."""
    if not 0 <= token < served.vocab_size:
        raise InvalidRequest(
            f"'{param}': token ids must be between 0 and {served.vocab_size - 1}, not {token}",
            param=param,
            code="invalid_value",
        )


def _output_limit(
    max_length: int, prompt_tokens: int, request: GenerationRequest, param: str
) -> int | None:
    name, limit = request.token_limit
    context = f"This model's maximum context length is {max_length} tokens"
    if prompt_tokens >= max_length:
        raise ContextLengthExceeded(
            f"{context}, but '{param}' has {prompt_tokens} tokens, which leaves no room to generate",
            param=param,
        )
    if limit is not None and prompt_tokens + limit > max_length:
        raise ContextLengthExceeded(
            f"{context}, but {prompt_tokens + limit} were requested ({prompt_tokens} in '{param}', "
            f"{limit} in '{name}'); at most {max_length - prompt_tokens} can be generated",
            param=name,
        )
    return limit


def _check_min_tokens(params: SamplingParams, room: int) -> None:
    least, most = params.min_new_tokens, room
    if params.max_new_tokens is not None:
        most = min(most, params.max_new_tokens)
    if least > most:
        raise InvalidRequest(
            f"'min_tokens' must be at most the {most} tokens that can be generated, not {least}",
            param="min_tokens",
            code="invalid_value",
        )


def _sampling_params(
    served: ServedModel, request: GenerationRequest, max_new_tokens: int | None
) -> SamplingParams:
    def chosen(name: str) -> Any:
        given = getattr(request, name)
        is_given = name in request.model_fields_set
        return given if is_given else served.sampling_defaults.get(name, given)

    seed = secrets.randbits(63) if request.seed in (None, -1) else request.seed & MAX_SEED
    return SamplingParams(
        top_k=int(chosen("top_k")) or -1,
        top_p=chosen("top_p"),
        min_p=chosen("min_p"),
        temperature=chosen("temperature"),
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=chosen("repetition_penalty"),
        logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
        allowed_token_ids=tuple(request.allowed_token_ids or ()),
        bad_words=_bad_words(served, request.bad_words),
        max_new_tokens=max_new_tokens,
        min_new_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        include_stop_str_in_output=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        seed=seed,
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_prompt_logprobs,
    )


def _bad_words(served: ServedModel, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written at the start of a text and after a space."""
    spelled = (
        tuple(served.tokenizer.encode(f"{space}{word.lstrip()}", add_special_tokens=False))
        for word in words
        for space in ("", " ")
    )
    return tuple(dict.fromkeys(filter(None, spelled)))


async def constraint_of(request: GenerationRequest) -> tuple[str, GrammarSpec] | None:
    """The field that constrains the text of the request's output, and how; None when none does.

    Raises:
        InvalidRequest: it cannot be enforced.
    """
    format_, outputs = request.response_format, request.structured_outputs
    if format_ is None and outputs is None:
        return None
    # A schema may be as large as a body, and checking it takes as long as it takes.
    return await asyncio.to_thread(grammar_spec, format_, outputs)


async def grammar_of(
    http: Request,
    served: ServedModel,
    request: GenerationRequest,
    found: tuple[str, GrammarSpec] | None,
    *,
    may_go_on: bool = False,
) -> Grammar | None:
    """The compiled grammar of the field that was `found` to constrain the output, if one was.
    The request's body must have been read. `may_go_on`: text may always follow in it.

    Raises:
        InvalidRequest: it cannot be enforced or compiled.
        ClientLeft, DeadlineExceeded: while it was compiled.
    """
    if found is None:
        return None
    compiling = asyncio.create_task(
        compiled_grammar(
            http.app.state.grammars,
            found,
            ends=served.eos_token_ids,
            ignore_eos=request.ignore_eos,
            min_tokens=0 if may_go_on else request.min_tokens,
        )
    )
    leaving = asyncio.create_task(disconnect(http.receive))
    try:
        origin = origin_of(http.scope, request)
        await asyncio.wait(
            {compiling, leaving},
            timeout=origin.seconds_left,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if compiling.done():
            return await compiling
        if leaving.done() or origin.timeout is None:
            raise ClientLeft
        raise DeadlineExceeded(origin.timeout)
    finally:
        compiling.cancel()
        leaving.cancel()
