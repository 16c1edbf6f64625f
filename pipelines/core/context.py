"""`TextContext`: one choice of one request inside the engine."""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quire.pipelines.core.grammar import Grammar, TokenMatcher
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.core.token_buffer import TokenArray, TokenBuffer

Pooling = Literal["cls", "mean", "last"]
"""One vector of a text's last hidden states: the first token's, the mean of all, the last token's."""


class ContextWire(msgspec.Struct, array_like=True, frozen=True):
    """A context on the wire: everything a worker needs to start or to resume it exactly."""

    request_id: int
    prompt: bytes
    """int32 little-endian token ids."""
    generated: bytes
    """int32 token ids already committed; not empty when a stream is resumed."""
    params: SamplingParams
    choice: int
    max_length: int
    eos_token_ids: tuple[int, ...]
    priority: int
    cache_salt: bytes
    grammar_digest: str = ""
    """Of the `Grammar` that goes with it, if one does."""
    pooling: Pooling | None = None


class TextContext:
    """A request's tokens, parameters and status.

    `request_id` is the engine's own number, never a client's label. `choice` is the index among
    the `n` choices of a request; it keys the sampling noise. `max_length` bounds prompt plus
    output. `priority`: lower runs first. `cache_salt` separates prefix-cache entries of tenants.
    `grammar` constrains the output; a worker knows it by digest and holds the `matcher`.
    With `pooling` the context generates nothing: it ends after its prompt, with one vector of the
    prompt's hidden states.

    Raises:
        ValueError: an empty prompt, or a prompt that leaves no room for one token, or with
            `pooling` one longer than `max_length`.
    """

    def __init__(
        self,
        request_id: int,
        prompt: TokenArray,
        params: SamplingParams,
        *,
        max_length: int,
        generated: TokenArray | None = None,
        choice: int = 0,
        eos_token_ids: tuple[int, ...] = (),
        priority: int = 0,
        cache_salt: bytes = b"",
        grammar: Grammar | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        if prompt.size >= max_length + (pooling is not None):
            raise ValueError(
                f"the prompt has {prompt.size} tokens; max_length {max_length} leaves no room"
            )
        self.request_id = request_id
        self.tokens = TokenBuffer(prompt, generated)
        self.params = params
        self.max_length = max_length
        self.choice = choice
        self.eos_token_ids = eos_token_ids
        self.priority = priority
        self.cache_salt = cache_salt
        self.grammar = grammar
        self.grammar_digest = grammar.digest if grammar else ""
        self.matcher: TokenMatcher | None = None
        self.pooling = pooling
        self.pooled: NDArray[np.float64] | None = None
        """In a worker: the sum [C] of the states that were pooled so far."""
        # What is pooled counts as one token that is never run, as the last one of any context.
        room = 1 if pooling is not None else max_length - self.tokens.prompt_length
        self.max_new_tokens = (
            room if params.max_new_tokens is None else min(params.max_new_tokens, room)
        )
        """Tokens this context may generate in all."""
        self.status = TextGenerationStatus.ACTIVE
        self.cached_prefix_length: int | None = None
        """Prompt tokens found in the prefix cache when first scheduled; None before that."""

    @property
    def is_done(self) -> bool:
        return self.status.is_done

    @property
    def is_below_min_new_tokens(self) -> bool:
        """Whether the next sampled token must be neither end-of-sequence nor a stop token."""
        return self.tokens.generated_length < self.params.min_new_tokens

    def update(self, token: int) -> None:
        """Append the token sampled after the active window and judge the end.

        Raises:
            ValueError: the grammar does not allow it; nothing was appended.
        """
        if self.matcher is not None:
            self.matcher.accept(token)
        self.tokens.advance_with_token(token)
        self.status = self.judge(token)

    def judge(self, token: int) -> TextGenerationStatus:
        """The status after `token`, the last one appended."""
        generated = self.tokens.generated_length
        if generated > self.params.min_new_tokens:
            if token in self.eos_token_ids and not self.params.ignore_eos:
                return TextGenerationStatus.END_OF_SEQUENCE
            if token in self.params.stop_token_ids:
                return TextGenerationStatus.STOP_TOKEN
        if generated >= self.max_new_tokens:
            return TextGenerationStatus.MAXIMUM_LENGTH
        return TextGenerationStatus.ACTIVE

    def reset(self) -> None:
        """Forget the KV (preemption, resume): the history is recomputed, nothing else changes."""
        self.tokens.reset()

    def to_wire(self) -> ContextWire:
        return ContextWire(
            self.request_id,
            self.tokens.prompt.tobytes(),
            self.tokens.generated.tobytes(),
            self.params,
            self.choice,
            self.max_length,
            self.eos_token_ids,
            self.priority,
            self.cache_salt,
            self.grammar_digest,
            self.pooling,
        )

    @classmethod
    def from_wire(cls, wire: ContextWire) -> "TextContext":
        context = cls(
            wire.request_id,
            np.frombuffer(wire.prompt, dtype=np.int32),
            wire.params,
            max_length=wire.max_length,
            generated=np.frombuffer(wire.generated, dtype=np.int32),
            choice=wire.choice,
            eos_token_ids=wire.eos_token_ids,
            priority=wire.priority,
            cache_salt=wire.cache_salt,
            pooling=wire.pooling,
        )
        context.grammar_digest = wire.grammar_digest
        return context
