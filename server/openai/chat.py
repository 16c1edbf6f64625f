"""POST /v1/chat/completions."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from quire.server.engine import Engine
from quire.server.openai.admission import build_contexts, constraint_of, grammar_of
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.chat_format import ChatFormat
from quire.server.openai.chat_prompt import chat_prompt, opening_of
from quire.server.openai.origin import caller_of
from quire.server.openai.respond import respond
from quire.server.openai.schema import ChatCompletionRequest
from quire.server.openai.served import ServedModel
from quire.server.openai.tools.plan import ReplyPlan, allowed_names


async def create_chat_completion(http: Request) -> Response:
    """Generate replies to a conversation."""
    engine: Engine = http.app.state.engine
    engine.check_room(caller_of(http.scope))
    served: ServedModel = http.app.state.served
    request = await read_request(http, ChatCompletionRequest)
    model = served.resolve(request.model)
    served.check_generates()
    names = allowed_names(served.dialect, request.tools, request.tool_choice)
    prompt = await chat_prompt(
        engine,
        served,
        request,
        tools=request.tools if names else (),
        effort=request.reasoning_effort,
        is_cut=request.truncate_prompt_tokens is not None,
    )
    plan = ReplyPlan(
        dialect=served.dialect,
        opening=opening_of(served, request, prompt.ids),
        names=names,
        choice=request.tool_choice,
        is_parallel=request.parallel_tool_calls,
        shows_reasoning=request.include_reasoning,
        tools=tuple(request.tools),
    )
    answer = await constraint_of(request)
    # Schemas may be as large as a body, and checking them takes as long as it takes.
    found, warnings = await asyncio.to_thread(plan.grammar, answer)
    contexts = build_contexts(
        engine,
        served,
        request,
        [prompt.ids],
        param="messages",
        default_max_tokens=None,
        grammar=await grammar_of(
            http, served, request, found, may_go_on=answer is None and plan.may_go_on
        ),
    )
    return await respond(
        http,
        request,
        contexts,
        ChatFormat(
            served,
            model,
            request,
            contexts[0].tokens.prompt.tolist(),
            plan=plan,
            reasoning_field=http.app.state.settings.reasoning_field,
        ),
        starts_fresh=True,
        headers=warning_headers(request, *prompt.warnings, *warnings),
    )
