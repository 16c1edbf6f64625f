"""What a step did to its contexts, in columns."""

from dataclasses import dataclass, field

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities, PromptLogProbabilities
from quire.pipelines.core.status import TextGenerationStatus

NO_TOKEN = -1


@dataclass(slots=True)
class StepRows:
    """One entry per context that got a token or failed; see `StepOutput` for the columns."""

    request_ids: list[int] = field(default_factory=list)
    base_index: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    statuses: list[TextGenerationStatus] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    queue_seconds: list[float] = field(default_factory=list)
    logprobs: dict[int, LogProbabilities] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    prompt_logprobs: list[PromptLogProbabilities] = field(default_factory=list)
    embeddings: dict[int, bytes] = field(default_factory=dict)

    def append(self, context: TextContext, token: int, queue_seconds: float) -> None:
        """Add `context`, which `token` was just appended to."""
        self.request_ids.append(context.request_id)
        self.base_index.append(context.tokens.generated_length - 1)
        self.tokens.append(token)
        self.statuses.append(context.status)
        self.cached_tokens.append(context.cached_prefix_length or 0)
        self.queue_seconds.append(queue_seconds)

    def append_pooled(self, context: TextContext, vector: bytes, queue_seconds: float) -> None:
        """Add `context`, which ends with `vector`, and say so in its status."""
        context.status = TextGenerationStatus.MAXIMUM_LENGTH
        self.embeddings[len(self.request_ids)] = vector
        self.append(context, NO_TOKEN, queue_seconds)
        self.base_index[-1] = 0

    def append_failed(self, context: TextContext, reason: str, queue_seconds: float) -> None:
        """Add `context`, which ends here without a token, and say so in its status."""
        context.status = TextGenerationStatus.FAILED
        self.errors[len(self.request_ids)] = reason
        self.append(context, NO_TOKEN, queue_seconds)
        self.base_index[-1] = context.tokens.generated_length
