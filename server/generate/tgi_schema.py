"""What a client of text-generation-inference may send.

https://huggingface.github.io/text-generation-inference/
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from quire.config.limits import LIMITS
from quire.pipelines.core.sampling_params import MAX_SEED
from quire.server.openai.known_fields import NEVER, OFF, Harmless
from quire.server.openai.request_model import RequestModel, refusal
from quire.server.openai.schema import StopString, number, time_limit


class Grammar(RequestModel):
    """`value`: a JSON Schema, as an object or as text; a regular expression; or, of json_schema, an
    object with the schema as its `schema`."""

    type: Literal["json", "regex", "json_schema"] = Field(description="What the value is.")
    value: str | dict[str, Any] = Field(description="What the output follows.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.type == "regex" and not isinstance(self.value, str):
            raise refusal("value", "must be a string for type regex")
        has_schema = isinstance(self.value, dict) and isinstance(self.value.get("schema"), dict)
        if self.type == "json_schema" and not has_schema:
            raise refusal("value", "must be an object with a schema for type json_schema")
        return self

    @property
    def constraint(self) -> dict[str, Any]:
        """As `structured_outputs` of OpenAI's routes."""
        if self.type == "json_schema" and isinstance(self.value, dict):
            return {"json": self.value["schema"]}
        return {self.type: self.value}


class Parameters(RequestModel):
    """Sampling is greedy unless `do_sample`, or one of temperature, top_k and top_p, asks for more;
    what the model's files recommend does not count."""

    may_constrain: ClassVar[bool] = True
    unsupported: ClassVar[Mapping[str, Harmless]] = {
        "best_of": Harmless((1,)),
        "typical_p": Harmless((1, 1.0)),
        "watermark": OFF,
        "adapter_id": NEVER,
    }

    max_new_tokens: int | None = Field(None, ge=1, description="As many as there is room for.")
    do_sample: bool = Field(False, description="Sample, and do not take the likeliest token.")
    temperature: float = number(1.0, "Divides the logits.", gt=0.0, le=2.0)
    top_k: int | None = Field(None, ge=1, le=2**31 - 1, description="Sample among so many.")
    top_p: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Sample among the likeliest tokens that together have this probability.",
    )
    repetition_penalty: float = number(1.0, "On tokens of the inputs and the output.", gt=0.0)
    frequency_penalty: float = number(0.0, "On tokens of the output.", ge=-2.0, le=2.0)
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Without it a random one.")
    stop: list[StopString] = Field(
        [], max_length=LIMITS.stop_strings, description="The text ends with the one that was met."
    )
    return_full_text: bool = Field(False, description="The text begins with the inputs.")
    truncate: int | None = Field(None, ge=1, description="Keep the last tokens of the inputs.")
    details: bool = Field(False, description="Tell the tokens and why the output ended.")
    decoder_input_details: bool = Field(False, description="Tell the tokens of the inputs too.")
    top_n_tokens: int = Field(
        0, ge=0, le=LIMITS.logprobs, description="Tell so many of the likeliest tokens each time."
    )
    grammar: Grammar | None = Field(None, description="The output's form.")

    @property
    def samples(self) -> bool:
        is_warped = self.temperature != 1.0 or self.top_k is not None
        return self.do_sample or is_warped or (self.top_p or 1.0) < 1.0


class GenerateRequest(RequestModel):
    """The body of POST /generate and POST /generate_stream."""

    may_constrain: ClassVar[bool] = True

    inputs: str = Field(min_length=1, description="The text to continue.")
    parameters: Parameters = Field(Parameters.model_validate({}), description="How to continue it.")
    stream: bool = Field(False, description="Reply with server-sent events.")
    timeout: float | None = time_limit()
