"""What a request says of reasoning: the chat template's switch, a budget, or a refusal."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from tool_models import TEMPLATE, Model

USER: Any = {"role": "user", "content": "Hi"}
SWITCH = TEMPLATE + "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
EFFORT = TEMPLATE + "{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}"
REASONS = "{# </think> #}"
MARKS = ("<think>", "</think>")
ON: Any = {"type": "enabled", "budget_tokens": 1024}


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    body = {"model": "tiny", "max_tokens": 50, "messages": [USER], **fields}
    return http.post("/v1/messages", json=body)


@pytest.mark.parametrize(
    ("template", "fields", "end"),
    [
        (SWITCH, {}, "False"),
        (SWITCH, {"thinking": {"type": "disabled"}}, "False"),
        (SWITCH, {"thinking": {"type": "adaptive"}}, "True"),
        (SWITCH, {"thinking": ON}, "True"),
        (SWITCH, {"chat_template_kwargs": {"enable_thinking": 7}}, "7"),
        (EFFORT, {"output_config": {"effort": "high"}}, "high"),
        (EFFORT, {}, ""),
        (TEMPLATE, {"thinking": {"type": "disabled"}}, ""),
        (TEMPLATE, {"thinking": {"type": "adaptive"}}, ""),
        (TEMPLATE + REASONS, {"thinking": ON}, ""),
        (TEMPLATE + REASONS, {}, ""),
    ],
)
def test_thinking_is_the_templates_switch(
    make: Callable[..., Model], http: httpx2.Client, template: str, fields: Any, end: str
) -> None:
    model = make("hermes", template=template)
    model.says("ok")
    asked = {"messages": [USER], **fields}

    reply = http.post("/v1/messages", json={**asked, "max_tokens": 50}).json()
    count = http.post("/v1/messages/count_tokens", json=asked).json()

    assert count == {"input_tokens": reply["usage"]["input_tokens"]}
    assert model.prompt == f"[user] Hi;[assistant]{end}"


@pytest.mark.parametrize(
    ("template", "fields", "name"),
    [
        (TEMPLATE, {"thinking": ON}, "thinking"),
        (TEMPLATE + REASONS, {"thinking": {"type": "disabled"}}, "thinking"),
        (SWITCH, {"output_config": {"effort": "low"}}, "output_config.effort"),
        (TEMPLATE, {"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    make: Callable[..., Model], http: httpx2.Client, template: str, fields: Any, name: str
) -> None:
    make("hermes", template=template)

    reply = ask(http, **fields)
    body = {"messages": [USER], **fields}
    count = http.post("/v1/messages/count_tokens", json=body)

    assert reply.status_code == count.status_code == 400
    assert f"'{name}'" in reply.json()["error"]["message"]


def test_a_budget_that_may_be_exceeded_is_told(
    make: Callable[..., Model], http: httpx2.Client
) -> None:
    make("hermes", template=SWITCH).says("ok")

    low = ask(http, thinking={"type": "enabled", "budget_tokens": 9})
    high = ask(http, thinking={"type": "enabled", "budget_tokens": 50})

    assert low.headers["x-quire-warning"].startswith("thinking.budget_tokens")
    assert "x-quire-warning" not in high.headers


@pytest.mark.parametrize(
    ("template", "thinking", "tokens"),
    [
        (SWITCH + REASONS, {"type": "enabled", "budget_tokens": 9}, 9),
        (TEMPLATE + REASONS, {"type": "enabled", "budget_tokens": 9}, 9),
        (TEMPLATE + REASONS, {"type": "disabled"}, 0),
        (TEMPLATE + REASONS, {"type": "adaptive"}, None),
        (TEMPLATE + REASONS, None, None),
        (SWITCH + REASONS, {"type": "disabled"}, None),
    ],
)
def test_a_budget_is_kept_where_one_token_ends_the_reasoning(
    make: Callable[..., Model],
    http: httpx2.Client,
    template: str,
    thinking: Any,
    tokens: int | None,
) -> None:
    model = make("hermes", MARKS, template)
    model.says("ok")

    reply = ask(http, thinking=thinking)

    assert reply.status_code == 200 and "x-quire-warning" not in reply.headers
    budget = model.live.engine.streams[-1].context.params.thinking
    assert (None if budget is None else budget.tokens) == tokens
