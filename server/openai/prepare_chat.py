"""From a checked conversation to its contexts, for every route that answers one."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from quire.pipelines.core.context import TextContext
from quire.server.engine import Engine
from quire.server.openai.admission import build_contexts, constraint_of, grammar_of
from quire.server.openai.chat_prompt import ChatPrompt, chat_prompt, opening_of
from quire.server.openai.schema import ChatCompletionRequest
from quire.server.openai.served import ServedModel
from quire.server.openai.tools.plan import ReplyPlan, allowed_names


@dataclass(frozen=True, kw_only=True)
class PreparedChat:
    """What `respond` runs. `plan` reads the generated text; `warnings` are for the client."""

    served: ServedModel
    model: str
    contexts: Sequence[TextContext]
    plan: ReplyPlan
    warnings: Sequence[str]

    @property
    def prompt_ids(self) -> list[int]:
        ids: list[int] = self.contexts[0].tokens.prompt.tolist()
        return ids


async def prepare_chat(
    http: Request, request: ChatCompletionRequest, *, default_max_tokens: int | None = None
) -> PreparedChat:
    """The contexts of a request whose body has been read. `default_max_tokens`: see
    `build_contexts`.

    Raises:
        ModelNotFound: the model is not served.
        InvalidRequest: the model generates no text or cannot do what is asked, or the prompt does
            not fit.
        ClientLeft, DeadlineExceeded: while a grammar was compiled.
    """
    engine: Engine = http.app.state.engine
    served: ServedModel = http.app.state.served
    model = served.resolve(request.model)
    served.check_generates()
    is_cut = request.truncate_prompt_tokens is not None
    names, prompt = await _prompt_of(engine, served, request, is_cut=is_cut)
    plan = ReplyPlan(
        dialect=served.dialect,
        opening=opening_of(served, request, prompt.ids),
        names=names,
        choice=request.tool_choice,
        is_parallel=request.parallel_tool_calls,
        shows_reasoning=request.include_reasoning,
        tools=tuple(request.tools),
        on_calls=partial(
            http.app.state.metrics.on_tool_parser,
            route=http.scope["route"].path,
            is_streamed=request.stream,
        ),
    )
    answer = await constraint_of(request)
    # Schemas may be as large as a body, and checking them takes as long as it takes.
    found, warnings = await asyncio.to_thread(plan.grammar, answer)
    thinking = plan.thinking_budget(request.thinking_token_budget)
    contexts = build_contexts(
        engine,
        served,
        request,
        [prompt.ids],
        param=request.messages_field,
        default_max_tokens=default_max_tokens,
        thinking=thinking,
        grammar=await grammar_of(
            http, served, request, found, may_go_on=answer is None and plan.may_go_on
        ),
    )
    return PreparedChat(
        served=served,
        model=model,
        contexts=contexts,
        plan=plan,
        warnings=(*prompt.warnings, *warnings),
    )


async def counted_prompt(http: Request, request: ChatCompletionRequest) -> ChatPrompt:
    """The prompt of a request whose tokens are only counted, of any length.

    Raises:
        ModelNotFound, InvalidRequest: as `prepare_chat`.
    """
    served: ServedModel = http.app.state.served
    served.resolve(request.model)
    served.check_generates()
    _, prompt = await _prompt_of(http.app.state.engine, served, request, is_cut=True)
    return prompt


async def _prompt_of(
    engine: Engine, served: ServedModel, request: ChatCompletionRequest, *, is_cut: bool
) -> tuple[frozenset[str], ChatPrompt]:
    """The functions that a reply may call, and its prompt."""
    names = allowed_names(served.dialect, request.tools, request.tool_choice)
    prompt = await chat_prompt(
        engine,
        served,
        request,
        tools=request.tools if names else (),
        effort=request.reasoning_effort,
        is_cut=is_cut,
    )
    return names, prompt
