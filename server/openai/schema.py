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
from quire.server.openai.prompts import Prompt, prompt_schema, prompts_of
from quire.server.openai.request_model import RequestModel, refusal
from quire.server.openai.structured import ResponseFormat, StructuredOutputs
from quire.server.openai.tools.request import ToolChoice, check_tools

DEFAULT_COMPLETION_TOKENS = 16
_INT32 = 2**31 - 1

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

TokenId = Annotated[int, Field(ge=0, le=_INT32)]
BadWord = Annotated[str, Field(pattern=r"\S", max_length=LIMITS.bad_word_chars)]
StopString = Annotated[str, Field(min_length=1, max_length=LIMITS.stop_string_chars)]


def number(default: float, description: str | None = None, **bounds: float) -> Any:
    """A finite number within `bounds` (gt, ge, le)."""
    return Field(  # type: ignore[call-overload]
        default, description=description, allow_inf_nan=False, **bounds
    )


def time_limit() -> Any:
    """The field `timeout`."""
    return Field(
        None,
        gt=0.0,
        le=LIMITS.timeout_seconds,
        allow_inf_nan=False,
        description="Seconds after which the request is given up; as the header x-request-timeout.",
    )


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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

    include_usage: bool = Field(
        default=False, description="A last chunk with the usage, without choices."
    )
    continuous_usage_stats: bool = Field(
        default=False, description="The usage so far in each chunk."
    )


class GenerationRequest(RequestModel):
    """What completions and chat completions have in common."""

    may_constrain: ClassVar[bool] = True
    without_effect: ClassVar[Mapping[str, type]] = known_fields.NO_EFFECT

    model: str | None = Field(None, description="A served name; without it the first.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Of the output. Without it: 16 for completions, else all there is room for.",
    )
    min_tokens: int = Field(
        0, ge=0, description="No end, by token or string, before so many tokens."
    )
    n: int = Field(1, ge=1, le=LIMITS.n, description="Choices for each prompt.")
    temperature: float = number(1.0, "0: always the likeliest token.", ge=0.0, le=2.0)
    top_p: float = number(
        1.0,
        "Sample among the likeliest tokens that together have this probability.",
        gt=0.0,
        le=1.0,
    )
    top_k: int = Field(-1, ge=-1, le=_INT32, description="Sample among so many; 0, -1: all.")
    min_p: float = number(
        0.0, "Sample no token below this part of the likeliest one's probability.", ge=0.0, le=1.0
    )
    repetition_penalty: float = number(
        1.0,
        "Divides the logits of tokens of the prompt and the output; negative ones it multiplies.",
        gt=0.0,
    )
    presence_penalty: float = number(
        0.0, "Taken from the logits of tokens of the output.", ge=-2.0, le=2.0
    )
    frequency_penalty: float = number(
        0.0, "As presence_penalty, for each time that the token occurs.", ge=-2.0, le=2.0
    )
    seed: int | None = Field(
        None,
        ge=-MAX_SEED - 1,
        le=MAX_SEED,
        description="The same seed and request give the same output; -1 and null: a random one.",
    )
    stop: Annotated[list[StopString], BeforeValidator(_listed), WithJsonSchema(_STOP_SCHEMA)] = (
        Field(
            [],
            max_length=LIMITS.stop_strings,
            description="Texts that end the output, and are not in it.",
        )
    )
    stop_token_ids: list[TokenId] = Field(
        [], max_length=LIMITS.stop_token_ids, description="Tokens that end the output."
    )
    include_stop_str_in_output: bool = Field(
        False, description="Keep the stop string that ended it."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {},
        max_length=LIMITS.logit_bias,
        description="What is added to the logits of tokens, by token id.",
        json_schema_extra={"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"}},
    )
    allowed_token_ids: list[TokenId] | None = Field(
        None,
        min_length=1,
        max_length=LIMITS.allowed_token_ids,
        description="The output is of these tokens alone.",
    )
    bad_words: list[BadWord] = Field(
        [],
        max_length=LIMITS.bad_words,
        description="Words and phrases whose tokens are not generated in a row.",
    )
    response_format: ResponseFormat | None = Field(None, description="The output's form.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The output's form; not beside response_format."
    )
    ignore_eos: bool = Field(False, description="Go on after the model's own end of a reply.")
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=LIMITS.logprobs,
        description="For each token of the prompt, its log-probability and those of so many others.",
    )
    skip_special_tokens: bool = Field(True, description="Leave control tokens out of the text.")
    truncate_prompt_tokens: int | None = Field(
        None,
        description="Keep this many tokens of the prompt; -1: as many as fit.",
        json_schema_extra={"not": {"exclusiveMaximum": 1, "not": {"const": -1}}},
    )
    truncation_side: Literal["left", "right"] = Field(
        "left", description="The side of the prompt that truncate_prompt_tokens cuts."
    )
    return_token_ids: bool = Field(False, description="Tell the tokens of prompt and output.")
    stream: bool = Field(False, description="Reply with server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Needs stream.")
    priority: int = Field(
        0, ge=-LIMITS.priority, le=LIMITS.priority, description="Lower runs first."
    )
    cache_salt: str | None = Field(
        None, min_length=1, description="Cached prompts are shared within one salt alone."
    )
    timeout: float | None = time_limit()

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
        PlainValidator(lambda value: prompts_of(value, LIMITS.prompts, "prompts")),
        WithJsonSchema(prompt_schema(LIMITS.prompts)),
    ] = Field(description="One or several, each a text or token ids.")
    max_tokens: int | None = Field(
        None, ge=0, description="Of the output; 16 without it; 0 needs echo."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=LIMITS.logprobs,
        description="Log-probabilities of each token and of so many of the likeliest; with echo of "
        "the prompt's too.",
    )
    echo: bool = Field(False, description="Begin the text with the prompt.")
    suffix: str | None = Field(
        None,
        description="The output is to end where it begins; for models that fill in the middle.",
    )
    add_special_tokens: bool = Field(True, description="Begin a text as the tokenizer does.")

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
        if self.suffix and self.echo:
            raise refusal("suffix", "cannot be combined with echo")
        if self.suffix and self.truncate_prompt_tokens is not None:
            raise refusal("suffix", "cannot be combined with truncate_prompt_tokens")
        if self.suffix and not isinstance(self.prompt[0], str):
            raise refusal("suffix", "needs prompts of text, not of token ids")
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
    logprobs: bool = Field(False, description="Tell each token's log-probability.")
    top_logprobs: int | None = Field(
        None, ge=0, le=LIMITS.logprobs, description="And those of so many others; needs logprobs."
    )
    tool_choice: ToolChoice | None = Field(None, description="auto when there are tools.")
    parallel_tool_calls: bool = Field(True, description="False: at most one call in a reply.")
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="For chat templates that have one, or that can turn reasoning off."
    )
    thinking_token_budget: int | None = Field(
        None,
        ge=0,
        le=_INT32,
        description="Tokens of reasoning after which the model has to answer.",
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

    model: str | None = Field(None, description="A served name; without it the first.")
    input: Annotated[
        list[Prompt],
        PlainValidator(lambda value: prompts_of(value, LIMITS.embedding_inputs, "texts")),
        WithJsonSchema(prompt_schema(LIMITS.embedding_inputs)),
    ] = Field(description="One or several texts, each a string or token ids.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: float32 numbers, little-endian."
    )
    dimensions: int | None = Field(
        None, ge=1, description="The first so many numbers of each vector, normalized again."
    )
    priority: int = Field(
        0, ge=-LIMITS.priority, le=LIMITS.priority, description="Lower runs first."
    )
    timeout: float | None = time_limit()


class TokenizePromptRequest(RequestModel):
    """The body of POST /tokenize for a text."""

    model: str | None = Field(None, description="A served name; without it the first.")
    prompt: str = Field(description="The text.")
    add_special_tokens: bool = Field(True, description="Begin a text as the tokenizer does.")
    return_token_strs: bool = Field(False, description="Tell each token's text too.")


class TokenizeChatRequest(Conversation):
    """The body of POST /tokenize for a conversation."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.TOKENIZE_CHAT

    model: str | None = Field(None, description="A served name; without it the first.")
    return_token_strs: bool = Field(False, description="Tell each token's text too.")


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: str | None = Field(None, description="A served name; without it the first.")
    tokens: list[TokenId] = Field(
        max_length=LIMITS.detokenize_tokens, fail_fast=True, description="Token ids."
    )
