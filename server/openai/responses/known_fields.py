"""Fields of Responses that Quire does not serve; as `quire.server.openai.known_fields`."""

from collections.abc import Mapping

from quire.server.openai.known_fields import (
    CONSTRAINTS,
    EMPTY,
    ENGINE,
    NEVER,
    OFF,
    ON,
    SAMPLING,
    Harmless,
)

_ONE = "a response is one reply; send the request several times"

RESPONSES: Mapping[str, Harmless] = {
    **SAMPLING,
    **CONSTRAINTS,
    **ENGINE,
    "messages": Harmless(hint="use input"),
    "prompt": Harmless(hint="this server keeps no prompts; use instructions and input"),
    "conversation": Harmless(hint="use previous_response_id"),
    "background": Harmless((False,), "leave the connection open, or use /v1/batches"),
    "background_options": NEVER,
    "context_management": EMPTY,
    "moderation": NEVER,
    "access_programs": NEVER,
    "image": NEVER,
    "modalities": Harmless((["text"],), "only text is served"),
    "max_tokens": Harmless(hint="use max_output_tokens"),
    "max_completion_tokens": Harmless(hint="use max_output_tokens"),
    "response_format": Harmless(hint="use text.format"),
    "reasoning_effort": Harmless(hint="use reasoning.effort"),
    "logprobs": Harmless((False,), "use include and top_logprobs"),
    "prompt_logprobs": NEVER,
    "return_token_ids": OFF,
    "n": Harmless((1,), _ONE),
    "echo": OFF,
    "functions": Harmless(([],), "use tools"),
    "function_call": Harmless(("none",), "use tool_choice"),
    "chat_template": Harmless(hint="the model's own is used"),
    "continue_final_message": OFF,
    "add_generation_prompt": ON,
    "add_special_tokens": OFF,
    "include_reasoning": ON,
}

INPUT_TOKENS: Mapping[str, Harmless] = {
    "conversation": RESPONSES["conversation"],
    "prompt": RESPONSES["prompt"],
    "personality": NEVER,
    "truncation": Harmless(("disabled",), "all of the input is counted"),
}

STREAM_OPTIONS: Mapping[str, Harmless] = {
    # The last event always tells it.
    "include_usage": Harmless((True, False)),
    "continuous_usage_stats": OFF,
}

REASONING: Mapping[str, Harmless] = {
    "summary": Harmless(("auto",), "no summaries are made; reasoning is given as it is"),
    "generate_summary": Harmless(("auto",), "no summaries are made; reasoning is given as it is"),
    "context": Harmless(("auto",), "the model's chat template decides"),
    "mode": Harmless(("standard",)),
}

TOOL: Mapping[str, Harmless] = {
    "async": OFF,
    "defer_loading": OFF,
    "allowed_callers": Harmless((["direct"],)),
    "output_schema": NEVER,
}

CALL: Mapping[str, Harmless] = {
    "async": OFF,
    "caller": Harmless(({"type": "direct"},)),
    "namespace": NEVER,
}

REASONING_ITEM: Mapping[str, Harmless] = {
    "encrypted_content": Harmless(hint="reasoning is given and taken as text, in content")
}

ITEM_HINTS: Mapping[str, str] = {
    "item_reference": "send the item itself, or previous_response_id",
}
