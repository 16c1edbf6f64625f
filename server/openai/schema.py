"""What a client may send. A field is one line here and its use; see `known_fields` for the others."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from quire.config.limits import LIMITS
from quire.pipelines.core.sampling_params import MAX_SEED
from quire.server.openai import known_fields
from quire.server.openai.known_fields import Harmless, unsupported
from quire.server.openai.request_model import RequestModel, refusal
from quire.server.openai.structured import ResponseFormat, StructuredOutputs

DEFAULT_COMPLETION_TOKENS = 16
_INT32 = 2**31 - 1

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


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or a list of them, each a string or token ids, as a list."""
    one = isinstance(value, str) or (_is_token_list(value) and value != [])
    prompts = [value] if one else value
    if isinstance(prompts, list) and len(prompts) > LIMITS.prompts and not one:
        raise refusal("", f"must hold at most {LIMITS.prompts} prompts, not {len(prompts)}")
    if not isinstance(prompts, list) or not (
        all(isinstance(prompt, str) for prompt in prompts) or all(map(_is_token_list, prompts))
    ):
        raise refusal("", "must be a string, a list of strings, token ids, or a list of token ids")
    if not prompts or not all(prompts):
        raise refusal("", "must not be empty")
    return prompts


_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        *(
            {"type": "array", "items": items, "minItems": 1, "maxItems": LIMITS.prompts}
            for items in (
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            )
        ),
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    ]
}
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

    prompt: Annotated[list[Prompt], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
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


class TextPart(RequestModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if value in ("image_url", "input_audio", "audio_url", "video_url", "file", "refusal"):
            raise unsupported("", "only text parts are served")
        return value


def _content_kind(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


class Message(RequestModel):
    """One message of a conversation. `reasoning` is another name of `reasoning_content`."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("<parts>")],
        Discriminator(_content_kind),
    ]
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by line breaks."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class Conversation(RequestModel):
    """Messages and how the chat template makes a prompt of them."""

    messages: list[Message] = Field(min_length=1, max_length=LIMITS.messages, fail_fast=True)
    add_generation_prompt: bool = True
    continue_final_message: bool = Field(
        False, description="The last message is not ended; the reply goes on with it."
    )
    add_special_tokens: bool = Field(False, description="Besides those of the chat template.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Variables of the model's chat template; others are refused."
    )

    @property
    def asks_for_reply(self) -> bool:
        """Whether the prompt ends with the opening of the assistant's next message."""
        return self.add_generation_prompt and not self.continue_final_message

    @model_validator(mode="after")
    def _ending_agrees(self) -> Self:
        is_given = "add_generation_prompt" in self.model_fields_set
        if self.continue_final_message and self.add_generation_prompt and is_given:
            raise refusal("continue_final_message", "needs add_generation_prompt to be false")
        return self


class ChatCompletionRequest(Conversation, GenerationRequest):
    """The body of POST /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.CHAT

    max_completion_tokens: int | None = Field(None, ge=1, description="Wins over max_tokens.")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=LIMITS.logprobs)

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
