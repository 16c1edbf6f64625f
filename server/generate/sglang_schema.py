"""What a client of SGLang's native route may send.

https://docs.sglang.ai/basic_usage/sampling_params.html
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Discriminator, Field, Tag, model_validator

from quire.config.limits import LIMITS
from quire.pipelines.core.sampling_params import MAX_SEED
from quire.server.openai.known_fields import EMPTY, NEVER, OFF, Harmless
from quire.server.openai.prompts import Prompt
from quire.server.openai.request_model import RequestModel, refusal
from quire.server.openai.schema import StopString, TokenId, number, time_limit

DEFAULT_NEW_TOKENS = 128
_BATCHES = "give one value, which is for every prompt"


def _one_or_many(value: Any) -> str:
    return "<many>" if isinstance(value, list) else "<one>"


def _ids_or_lists(value: Any) -> str:
    is_batch = isinstance(value, list) and value != [] and all(isinstance(i, list) for i in value)
    return "<many>" if is_batch else "<one>"


class SamplingParams(RequestModel):
    """Fields that are left out have SGLang's defaults, whatever the model's files recommend."""

    may_constrain: ClassVar[bool] = True
    unsupported: ClassVar[Mapping[str, Harmless]] = {
        "stop_regex": EMPTY,
        "spaces_between_special_tokens": Harmless((True, False)),
        "custom_params": EMPTY,
        "stream_interval": Harmless((1,)),
        "beam_width": NEVER,
    }

    max_new_tokens: int = Field(DEFAULT_NEW_TOKENS, ge=0, description="Of the output.")
    min_new_tokens: int = Field(0, ge=0, description="The output does not end before.")
    n: int = Field(1, ge=1, le=LIMITS.n, description="Choices for each prompt.")
    temperature: float = number(1.0, "0: always the likeliest token.", ge=0.0, le=2.0)
    top_p: float = number(
        1.0, "Sample among the likeliest that together have this probability.", gt=0.0, le=1.0
    )
    top_k: int = Field(-1, ge=-1, le=2**31 - 1, description="0 and -1 keep every token.")
    min_p: float = number(
        0.0, "Sample no token below this part of the likeliest one's probability.", ge=0.0, le=1.0
    )
    frequency_penalty: float = number(
        0.0, "On tokens of the output, for each time.", ge=-2.0, le=2.0
    )
    presence_penalty: float = number(0.0, "On tokens of the output.", ge=-2.0, le=2.0)
    repetition_penalty: float = number(
        1.0, "On tokens of the prompt and the output.", gt=0.0, le=2.0
    )
    sampling_seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Without it a random one."
    )
    stop: Annotated[
        Annotated[StopString, Tag("<one>")]
        | Annotated[list[StopString], Field(max_length=LIMITS.stop_strings), Tag("<many>")],
        Discriminator(_one_or_many),
    ] = Field([], description="Texts that end the output, and are not in it.")
    stop_token_ids: list[TokenId] = Field(
        [], max_length=LIMITS.stop_token_ids, description="Tokens that end the output."
    )
    no_stop_trim: bool = Field(False, description="The text ends with what stopped it.")
    ignore_eos: bool = Field(False, description="Go on after the model's own end of a reply.")
    skip_special_tokens: bool = Field(True, description="Leave control tokens out of the text.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=LIMITS.logit_bias, description="By token id."
    )
    json_schema: str | None = Field(None, min_length=1, description="A JSON Schema as text.")
    regex: str | None = Field(None, min_length=1, description="The whole output matches it.")
    ebnf: str | None = Field(None, min_length=1, description="A grammar, as xgrammar reads it.")
    structural_tag: str | None = Field(None, min_length=1, description="xgrammar's, as text.")

    @property
    def constraint(self) -> dict[str, str]:
        """As `structured_outputs` of OpenAI's routes."""
        given = {
            "json": self.json_schema,
            "regex": self.regex,
            "grammar": self.ebnf,
            "structural_tag": self.structural_tag,
        }
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _has_one_constraint(self) -> Self:
        if len(self.constraint) > 1:
            raise refusal("json_schema", "and regex, ebnf, structural_tag: at most one is possible")
        return self


class SglangRequest(RequestModel):
    """The body of POST /generate with `text` or `input_ids`, of one prompt or several."""

    may_constrain: ClassVar[bool] = True
    unsupported: ClassVar[Mapping[str, Harmless]] = {
        "input_embeds": NEVER,
        "image_data": EMPTY,
        "video_data": EMPTY,
        "audio_data": EMPTY,
        "modalities": EMPTY,
        "token_ids_logprob": NEVER,
        "return_hidden_states": OFF,
        "return_routed_experts": OFF,
        "return_prompt_token_ids": OFF,
        "return_entropy": OFF,
        "session_params": NEVER,
        "lora_path": NEVER,
        "custom_logit_processor": NEVER,
        "priority": Harmless((0,)),
        "background": OFF,
        "require_reasoning": OFF,
        "max_thinking_tokens": NEVER,
        "cache_salt": NEVER,
        "extra_key": NEVER,
        "bootstrap_host": NEVER,
        "bootstrap_port": NEVER,
        "bootstrap_room": NEVER,
    }
    without_effect: ClassVar[Mapping[str, type]] = {"log_metrics": bool, "session_id": str}

    text: (
        Annotated[
            Annotated[str, Field(min_length=1), Tag("<one>")]
            | Annotated[
                list[Annotated[str, Field(min_length=1)]],
                Field(min_length=1, max_length=LIMITS.prompts),
                Tag("<many>"),
            ],
            Discriminator(_one_or_many),
        ]
        | None
    ) = Field(None, description="One prompt or several; this or input_ids.")
    input_ids: (
        Annotated[
            Annotated[list[TokenId], Field(min_length=1), Tag("<one>")]
            | Annotated[
                list[Annotated[list[TokenId], Field(min_length=1)]],
                Field(max_length=LIMITS.prompts),
                Tag("<many>"),
            ],
            Discriminator(_ids_or_lists),
        ]
        | None
    ) = Field(None, description="One prompt or several, as token ids.")
    sampling_params: Annotated[
        Annotated[SamplingParams, Tag("<one>")] | Annotated[list[SamplingParams], Tag("<many>")],
        Discriminator(_one_or_many),
    ] = Field(SamplingParams.model_validate({}), description="Or a list, one for each prompt.")
    return_logprob: bool = Field(False, description=_BATCHES)
    logprob_start_len: int = Field(
        -1, ge=-1, description="Where in the prompt log-probabilities begin; -1: after it."
    )
    top_logprobs_num: int = Field(
        0,
        ge=0,
        le=LIMITS.logprobs,
        description="Tell so many of the likeliest; needs return_logprob.",
    )
    return_text_in_logprobs: bool = Field(False, description="Tell each token's text too.")
    stream: bool = Field(False, description="Reply with server-sent events.")
    rid: str | list[str] | None = Field(None, description="The ids in the replies.")
    timeout: float | None = time_limit()

    @property
    def field(self) -> str:
        """Where the prompts are."""
        return "text" if self.text is not None else "input_ids"

    @property
    def is_batch(self) -> bool:
        given: Any = getattr(self, self.field)
        return isinstance(given, list) and not isinstance(given[0], int)

    @property
    def prompts(self) -> list[Prompt]:
        given: Any = getattr(self, self.field)
        return given if self.is_batch else [given]

    @property
    def params(self) -> list[SamplingParams]:
        """Those of each prompt."""
        if isinstance(self.sampling_params, list):
            return self.sampling_params
        return [self.sampling_params] * len(self.prompts)

    @model_validator(mode="after")
    def _prompts_agree(self) -> Self:
        if (self.text is None) == (self.input_ids is None):
            raise refusal("text", "or input_ids is needed, and not both")
        count = len(self.prompts)
        for name in ("sampling_params", "rid"):
            value = getattr(self, name)
            if isinstance(value, list) and (len(value) != count or not self.is_batch):
                raise refusal(name, f"must be one, or a list of {count} for a list of prompts")
        counts = {params.n for params in self.params}
        if len(counts) > 1:
            raise refusal("sampling_params", "must have the same n for every prompt")
        if len({params.max_new_tokens == 0 for params in self.params}) > 1:
            raise refusal("sampling_params", "must want tokens after every prompt, or after none")
        choices = count * counts.pop()
        if choices > LIMITS.choices:
            raise refusal(
                "sampling_params.n",
                f"times the number of prompts must be at most {LIMITS.choices}, not {choices}",
            )
        return self

    @model_validator(mode="after")
    def _logprobs_agree(self) -> Self:
        if self.top_logprobs_num and not self.return_logprob:
            raise refusal("top_logprobs_num", "needs return_logprob to be true")
        if self.logprob_start_len >= 0 and (self.stream or not self.return_logprob):
            raise refusal("logprob_start_len", "needs return_logprob to be true and no stream")
        return self
