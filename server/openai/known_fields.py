"""Fields that clients send and Quire does not serve: refused by name unless they ask for nothing.

A field that gets implemented moves from here to `schema`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Harmless:
    """The values of an unsupported field that change nothing, so that they are accepted."""

    values: tuple[Any, ...] = ()
    hint: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises the error that becomes `UnsupportedParameter`."""
        if not any(type(value) is type(known) and value == known for known in self.values):
            raise unsupported(name, self.hint)


def unsupported(field: str, hint: str = "") -> PydanticCustomError:
    """The error to raise in a validator for `field` of the object being validated."""
    return PydanticCustomError("unsupported", "{hint}", {"hint": hint, "field": field})


NEVER = Harmless()
OFF = Harmless((False,))
ON = Harmless((True,))
EMPTY = Harmless(([], {}, ""))
_TOOLS = "use tools"
_SAMPLER = "see top_k, top_p, min_p, temperature and the penalties"

SAMPLING: Mapping[str, Harmless] = {
    "best_of": Harmless((1,), "use n"),
    "use_beam_search": OFF,
    "beam_width": NEVER,
    "length_penalty": Harmless((1, 1.0)),
    "early_stopping": OFF,
    "logits_processors": EMPTY,
    "custom_logit_processor": NEVER,
    "logprob_token_ids": NEVER,
    "token_ids_logprob": NEVER,
    "no_stop_trim": OFF,
    "stop_regex": NEVER,
    "spaces_between_special_tokens": Harmless((True, False)),
    "repetition_detection": NEVER,
    "watermark": OFF,
    "repeat_penalty": Harmless((1, 1.0), "use repetition_penalty"),
    "typical_p": Harmless((1, 1.0), _SAMPLER),
    "top_n_sigma": Harmless((-1, -1.0), _SAMPLER),
    "mirostat": Harmless((0,), _SAMPLER),
    "dynatemp_range": Harmless((0, 0.0), _SAMPLER),
    "dry_multiplier": Harmless((0, 0.0), _SAMPLER),
    "xtc_probability": Harmless((0, 0.0), _SAMPLER),
    "samplers": Harmless(hint=_SAMPLER),
    "n_predict": Harmless(hint="use max_tokens"),
    "max_new_tokens": Harmless(hint="use max_tokens"),
    "min_new_tokens": Harmless(hint="use min_tokens"),
    "n_probs": Harmless((0,), "use logprobs"),
    "t_max_predict_ms": Harmless((-1, 0), "use timeout"),
}

CONSTRAINTS: Mapping[str, Harmless] = {
    "guided_json": Harmless(hint="use structured_outputs.json"),
    "guided_regex": Harmless(hint="use structured_outputs.regex"),
    "guided_choice": Harmless(hint="use structured_outputs.choice"),
    "guided_grammar": Harmless(hint="use structured_outputs.grammar"),
    "guided_decoding_backend": Harmless(hint="grammars are always compiled by xgrammar"),
    "guided_whitespace_pattern": Harmless(hint="use structured_outputs.grammar"),
    "json_schema": Harmless(hint="use response_format or structured_outputs.json"),
    "regex": Harmless(hint="use structured_outputs.regex"),
    "ebnf": Harmless(hint="use structured_outputs.grammar"),
    "grammar": Harmless(hint="use structured_outputs.grammar"),
    "structural_tag": Harmless(hint="use structured_outputs.structural_tag"),
}

STRUCTURED_OUTPUTS: Mapping[str, Harmless] = {
    "disable_any_whitespace": OFF,
    "disable_additional_properties": ON,
    "disable_fallback": Harmless((True, False)),
    "whitespace_pattern": NEVER,
}

ENGINE: Mapping[str, Harmless] = {
    "prompt_embeds": NEVER,
    "input_embeds": NEVER,
    "return_tokens_as_token_ids": OFF,
    "return_hidden_states": OFF,
    "kv_transfer_params": NEVER,
    "cache_prompt": ON,
    "id_slot": Harmless((-1,)),
    "lora_path": NEVER,
    "session_id": NEVER,
    "session_params": NEVER,
    "vllm_xargs": EMPTY,
    "service_tier": Harmless(("auto", "default")),
}

COMPLETION: Mapping[str, Harmless] = {
    **SAMPLING,
    **CONSTRAINTS,
    **ENGINE,
}

CHAT: Mapping[str, Harmless] = {
    **SAMPLING,
    **CONSTRAINTS,
    **ENGINE,
    "functions": Harmless(([],), _TOOLS),
    "function_call": Harmless(("none",), _TOOLS),
    "modalities": Harmless((["text"],), "only text is served"),
    "audio": NEVER,
    "prediction": NEVER,
    "web_search_options": NEVER,
    "reasoning": Harmless(hint="use reasoning_effort"),
    "separate_reasoning": ON,
    "echo": OFF,
    "chat_template": Harmless(hint="the model's own is used"),
    "documents": EMPTY,
    "mm_processor_kwargs": EMPTY,
    "media_io_kwargs": EMPTY,
}

_PROMPT = "put the model's prompt before the text"
_WHOLE_TEXT = "a text is embedded whole; cut it before"

EMBEDDING: Mapping[str, Harmless] = {
    "messages": Harmless(hint="use input"),
    "prompt": Harmless(hint=_PROMPT),
    "prompt_name": Harmless(hint=_PROMPT),
    "input_type": Harmless(hint=_PROMPT),
    "instruction": Harmless(hint=_PROMPT),
    "truncate_prompt_tokens": Harmless(hint=_WHOLE_TEXT),
    "truncate": Harmless((False,), _WHOLE_TEXT),
    "truncation_side": Harmless(hint=_WHOLE_TEXT),
    "max_tokens": Harmless(hint=_WHOLE_TEXT),
    "add_special_tokens": Harmless((True,), "send token ids"),
    "normalize": Harmless(hint="the model's files say"),
    "pooling": Harmless(hint="the model's files say"),
    "use_activation": Harmless(hint="the model's files say"),
    "modality": Harmless(("text",)),
    "embed_dtype": Harmless(("float32",)),
    "endianness": Harmless(("native", "little")),
    "output_dtype": Harmless(("float",)),
    "output_dimension": Harmless(hint="use dimensions"),
    "cache_salt": NEVER,
    "stream": OFF,
    "lora_path": NEVER,
    "service_tier": Harmless(("auto", "default")),
}

TOKENIZE_CHAT: Mapping[str, Harmless] = {
    name: CHAT[name]
    for name in (
        "chat_template",
        "documents",
        "media_io_kwargs",
        "mm_processor_kwargs",
    )
}

MESSAGE: Mapping[str, Harmless] = {
    "function_call": Harmless(hint="use tool_calls"),
    "audio": NEVER,
}

TOOL_CALL: Mapping[str, Harmless] = {"custom": NEVER}

NO_EFFECT: Mapping[str, type] = {
    "user": str,
    "metadata": dict,
    "store": bool,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "prompt_cache_options": dict,
}
"""They tell the server about the caller; the reply is the same without them."""
