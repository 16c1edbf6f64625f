"""A client's request before it becomes contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.pipelines.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class TokenGeneratorRequest:
    """One prompt to generate from: exactly one of `prompt` and `messages` is set.

    `id` is the label shown to the client; `index` the place among the request's prompts;
    `prompt` text or token ids; `messages` chat messages as the chat template wants them.
    """

    id: str
    index: int
    model_name: str
    prompt: str | Sequence[int] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    echo: bool = False
    chat_template_options: Mapping[str, Any] = field(default_factory=dict)
    sampling_params: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("set exactly one of prompt and messages")
