"""What a client may send. A field is one line here and its use; see `known_fields` for the others."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from quire.config.limits import LIMITS
from quire.pipelines.core.sampling_params import MAX_SEED
from quire.server.openai import known_fields
from quire.server.openai.conversation import Conversation
from quire.server.openai.known_fields import Harmless
from quire.server.openai.request_model import RequestModel, refusal
from quire.server.openai.structured import ResponseFormat, StructuredOutputs
from quire.server.openai.tools.request import ToolChoice, check_tools

DEFAULT_COMPLETION_TOKENS = 16
_INT32 = 2**31 - 1

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

Prompt = str | list[int]
TokenId = Annotated[int, Field(ge=0, le=_INT32)]
BadWord = Annotated[str, Field(pattern=r"\S", max_length=LIMITS.bad_word_chars)]
StopString = Annotated[str, Field(min_length=1, max_length=LIMITS.stop_string_chars)]


def number(default: float, **bounds: float) -> Any:
    """A finite number within `bounds` (gt, ge, le)."""
    return Field(default, allow_inf_nan=False, **bounds)  # type: ignore[call-overload]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _prompts(value: Any, limit: int, what: str) -> list[Prompt]:
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


def _prompt_schema(limit: int) -> dict[str, Any]:
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    text = {"type": "string", "minLength": 1}
    lists = (
        {"type": "array", "items": item, "minItems": 1, "maxItems": limit} for item in (text, ids)
    )
    return {"anyOf": [text, *lists, ids]}


_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": LIMITS.stop_string_chars},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": LIMITS.stop_string_chars},
            "maxItems": LIMITS.stop_strings,
        },
    ]
}


class StreamOptions(RequestModel):
    """`include_usage`: a last chunk with the usage; `continuous_usage_stats`: usage on each."""

    without_effect: ClassVar[Mapping[str, type]] = {"include_obfuscation": bool}

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(RequestModel):
    """What completions and chat completions have in common."""

    may_constrain: ClassVar[bool] = True
    without_effect: ClassVar[Mapping[str, type]] = known_fields.NO_EFFECT

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    n: int = Field(1, ge=1, le=LIMITS.n)
    temperature: float = number(1.0, ge=0.0, le=2.0)
    top_p: float = number(1.0, gt=0.0, le=1.0)
    top_k: int = Field(-1, ge=-1, le=_INT32, description="0 and -1 keep every token.")
    min_p: float = number(0.0, ge=0.0, le=1.0)
    repetition_penalty: float = number(1.0, gt=0.0)
    presence_penalty: float = number(0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = number(0.0, ge=-2.0, le=2.0)
    seed: int | None = Field(
        None, ge=-MAX_SEED - 1, le=MAX_SEED, description="-1 and null: a random one."
    )
    stop: Annotated[list[StopString], BeforeValidator(_listed), WithJsonSchema(_STOP_SCHEMA)] = (
        Field([], max_length=LIMITS.stop_strings)
    )
    stop_token_ids: list[TokenId] = Field([], max_length=LIMITS.stop_token_ids)
    include_stop_str_in_output: bool = False
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=LIMITS.logit_bias, description="By token id."
    )
    allowed_token_ids: list[TokenId] | None = Field(
        None, min_length=1, max_length=LIMITS.allowed_token_ids
    )
    bad_words: list[BadWord] = Field([], max_length=LIMITS.bad_words)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    ignore_eos: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=LIMITS.logprobs)
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(
        None, description="Keep this many tokens of the prompt; -1: as many as fit."
    )
    truncation_side: Literal["left", "right"] = Field(
        "left", description="The side of the prompt that truncate_prompt_tokens cuts."
    )
    return_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = Field(
        0, ge=-LIMITS.priority, le=LIMITS.priority, description="Lower runs first."
    )
    cache_salt: str | None = Field(None, min_length=1)
    timeout: float | None = Field(
        None,
        gt=0.0,
        le=LIMITS.timeout_seconds,
        allow_inf_nan=False,
        description="Seconds after which the request is given up; as the header x-request-timeout.",
    )

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The field that bounds the output, and its value."""
        return "max_tokens", self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Most likely tokens to report per token; None reports nothing."""

    @property
    def num_prompt_logprobs(self) -> int | None:
        """As `num_logprobs`, for the tokens of the prompt."""
        return self.prompt_logprobs

    @field_validator("logit_bias")
    @classmethod
    def _by_token_id(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            is_number = name.isascii() and name.isdecimal() and len(name) <= 10
            if not is_number or str(int(name)) != name:
                raise refusal("", f"must have token ids as names, not {name[:32]!r}")
        return value

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _keeps_something(cls, value: int | None) -> int | None:
        if value is not None and value != -1 and value < 1:
            raise refusal("", f"must be -1 or at least 1, not {value}")
        return value

    @field_validator("cache_salt")
    @classmethod
    def _short_salt(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) > LIMITS.cache_salt_bytes:
            limit = LIMITS.cache_salt_bytes
            raise refusal("", f"must be at most {limit} bytes, not {len(value.encode())}")
        return value

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options", "needs stream to be true")
        if self.prompt_logprobs is not None and self.stream:
            raise refusal("prompt_logprobs", "needs stream to be false")
        name, limit = self.token_limit
        if limit is not None and self.min_tokens > limit:
            raise refusal("min_tokens", f"must be at most {name} {limit}, not {self.min_tokens}")
        return self


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.COMPLETION

    prompt: Annotated[
        list[Prompt],
        PlainValidator(lambda value: _prompts(value, LIMITS.prompts, "prompts")),
        WithJsonSchema(_prompt_schema(LIMITS.prompts)),
    ]
    max_tokens: int | None = Field(None, ge=0, description="0 needs echo.")
    logprobs: int | None = Field(None, ge=0, le=LIMITS.logprobs)
    echo: bool = False
    add_special_tokens: bool = True

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        if not self.echo or self.logprobs is None:
            return self.prompt_logprobs
        return max(self.logprobs, self.prompt_logprobs or 0)

    @model_validator(mode="after")
    def _prompts_agree(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise refusal("max_tokens", "must be at least 1, not 0, unless echo is true")
        choices = self.n * len(self.prompt)
        if choices > LIMITS.choices:
            raise refusal(
                "n", f"times the number of prompts must be at most {LIMITS.choices}, not {choices}"
            )
        return self


class ChatCompletionRequest(Conversation, GenerationRequest):
    """The body of POST /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.CHAT

    max_completion_tokens: int | None = Field(None, ge=1, description="Wins over max_tokens.")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=LIMITS.logprobs)
    tool_choice: ToolChoice | None = Field(None, description="auto when there are tools.")
    parallel_tool_calls: bool = Field(True, description="False: at most one call in a reply.")
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="For chat templates that have one, or that can turn reasoning off."
    )
    include_reasoning: bool = Field(True, description="False: the reply leaves reasoning out.")

    @property
    def token_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _logprobs_agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs", "needs logprobs to be true")
        return self

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        check_tools(self.tools, self.tool_choice)
        return self


class EmbeddingRequest(RequestModel):
    """The body of POST /v1/embeddings."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.EMBEDDING
    without_effect: ClassVar[Mapping[str, type]] = known_fields.NO_EFFECT

    model: str | None = None
    input: Annotated[
        list[Prompt],
        PlainValidator(lambda value: _prompts(value, LIMITS.embedding_inputs, "texts")),
        WithJsonSchema(_prompt_schema(LIMITS.embedding_inputs)),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        None, ge=1, description="The first so many numbers of each vector, normalized again."
    )
    priority: int = Field(
        0, ge=-LIMITS.priority, le=LIMITS.priority, description="Lower runs first."
    )
    timeout: float | None = Field(
        None,
        gt=0.0,
        le=LIMITS.timeout_seconds,
        allow_inf_nan=False,
        description="Seconds after which the request is given up; as the header x-request-timeout.",
    )


class TokenizePromptRequest(RequestModel):
    """The body of POST /tokenize for a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(Conversation):
    """The body of POST /tokenize for a conversation."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.TOKENIZE_CHAT

    model: str | None = None
    return_token_strs: bool = False


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId] = Field(max_length=LIMITS.detokenize_tokens, fail_fast=True)
