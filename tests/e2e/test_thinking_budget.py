"""A budget of reasoning ends it at the same token, whatever becomes of the worker."""

import asyncio
import json
import os
import shutil
import signal
import time

import jsonschema
import pytest

from quire.pipelines.hf import resolve_model

BUDGET, CLOSING = 60, "2047"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 40}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
ASKED = {
    "plain": {"stop": ["<never>"], "extra_body": {"min_tokens": 150}},
    "schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": SCHEMA, "strict": True},
        }
    },
    "tools": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
}


@pytest.fixture(scope="module")
def server(launch, tmp_path_factory):
    """The demo model with its marks of tool calls as those of reasoning."""
    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(resolve_model("quire-demo", None), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        text = text.replace("<tool_call>", "<think>").replace("</tool_call>", "</think>")
        text = text.replace(
            "assistant\\\\n' }}{%- endif %}", "assistant\\\\n<think>' }}{%- endif %}"
        )
        (folder / name).write_text(text)
    server = launch("--model", str(folder), "--tool-call-parser", "mistral_list")
    server.wait_ready()
    return server


async def replies(client, asked, events: list[int] | None = None) -> dict[int, list[str]]:
    """Reasoning and answer of each choice; `events` gets one entry per chunk."""
    body = {"model": "model", "n": 2, "seed": 5, "temperature": 1.1, "max_tokens": 400, **asked}
    more = {"thinking_token_budget": BUDGET, **asked.get("extra_body", {})}
    # Only the budget ends the reasoning.
    body |= {"logit_bias": {CLOSING: -100}}
    body |= {"extra_body": more, "stream_options": {"include_usage": True}}
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    found = {index: ["", ""] for index in range(2)}
    stream = await client.chat.completions.create(messages=ask, stream=True, **body)
    async for chunk in stream:
        if events is not None:
            events.append(1)
        if chunk.usage is not None:
            details = chunk.usage.completion_tokens_details
            found[-1] = [str(chunk.usage.completion_tokens), str(details.reasoning_tokens)]
        for choice in chunk.choices:
            delta = choice.delta.model_dump()
            found[choice.index][0] += delta.get("reasoning_content") or ""
            found[choice.index][1] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                found[choice.index][1] += call.function.arguments or ""
    return found


# Five deaths in a minute would end the daemon.
@pytest.mark.parametrize(
    ("kind", "kills"),
    [("plain", [BUDGET, 3 * BUDGET]), ("schema", [BUDGET]), ("tools", [2 * BUDGET + 10])],
)
async def test_a_reply_goes_on_after_kill_9_where_it_was(server, connect, kind, kills):
    client, asked = connect(server), ASKED[kind]
    expected = await replies(client, asked)
    tokens = int(expected[-1][1])
    assert tokens == 2 * BUDGET, "the budget of both choices was spent"
    if kind != "plain":
        for index in range(2):
            jsonschema.validate(json.loads(expected[index][1]), SCHEMA)

    resumed = server.metric("quire_streams_resumed_total")
    events: list[int] = []
    running = asyncio.create_task(replies(client, asked, events))
    for chunks in kills:
        restarts, worker = server.metric("quire_worker_restarts_total"), server.worker()
        while len(events) < chunks and not running.done():
            await asyncio.sleep(0)
        # At once: what is left of a reply takes a few milliseconds.
        os.kill(worker.pid, signal.SIGKILL)
        await asyncio.to_thread(wait_for_the_next, server, restarts)

    assert await running == expected
    assert server.metric("quire_streams_resumed_total") > resumed


def wait_for_the_next(server, restarts: float) -> None:
    deadline = time.monotonic() + 60
    while server.metric("quire_worker_restarts_total") == restarts:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.01)
    server.wait_ready(timeout=120)
