"""The prompts of a request: texts or token ids, one or several."""

from typing import Any

from quire.server.openai.request_model import refusal

Prompt = str | list[int]


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def prompts_of(value: Any, limit: int, what: str) -> list[Prompt]:
    """One prompt or a list of at most `limit`, each a string or token ids, as a list."""
    one = isinstance(value, str) or (_is_token_list(value) and value != [])
    prompts = [value] if one else value
    if isinstance(prompts, list) and len(prompts) > limit and not one:
        raise refusal("", f"must hold at most {limit} {what}, not {len(prompts)}")
    if not isinstance(prompts, list) or not (
        all(isinstance(prompt, str) for prompt in prompts) or all(map(_is_token_list, prompts))
    ):
        raise refusal("", "must be a string, a list of strings, token ids, or a list of token ids")
    if not prompts or not all(prompts):
        raise refusal("", "must not be empty")
    return prompts


def prompt_schema(limit: int) -> dict[str, Any]:
    """The JSON Schema of what `prompts_of` takes."""
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    text = {"type": "string", "minLength": 1}
    lists = (
        {"type": "array", "items": item, "minItems": 1, "maxItems": limit} for item in (text, ids)
    )
    return {"anyOf": [text, *lists, ids]}
