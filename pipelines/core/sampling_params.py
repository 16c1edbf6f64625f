"""The sampling parameters of one request."""

import math

import msgspec

MAX_SEED = 2**63 - 1
MAX_TOP_K = 2**31 - 1


class ThinkingBudget(msgspec.Struct, frozen=True, array_like=True):
    """After `tokens` tokens of reasoning the token that ends it is the only one to come.

    `opening` and `closing` are the tokens around reasoning. `is_open`: the prompt ended inside it;
    otherwise the output begins with `opening`, maybe after tokens of `spaces`, or has no reasoning.
    """

    tokens: int
    opening: int
    closing: int
    spaces: tuple[int, ...]
    is_open: bool


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token of a request is chosen.

    The order of operations is: penalties, `logit_bias`, banned tokens (`allowed_token_ids`,
    `bad_words`, `min_new_tokens`), temperature, `top_k`, `top_p`, `min_p`, then a Gumbel draw keyed
    by (`seed`, choice, position, token id).

    Raises:
        ValueError: a parameter is out of range; the message names it, the limit and the value.
    """

    top_k: int = -1
    """Keep the k most likely tokens; -1 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this, in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than this times the most likely one, in [0, 1]."""
    temperature: float = 1.0
    """0 is greedy."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once per time it was generated, in [-2, 2]."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token generated at least once, in [-2, 2]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or output, > 0."""
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    """Added to the logits of these tokens."""
    allowed_token_ids: tuple[int, ...] = ()
    """When there are any, no other token is sampled."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the output never holds: the last token is banned after the others."""
    max_new_tokens: int | None = None
    """None: until the context's `max_length`."""
    min_new_tokens: int = 0
    """Neither end-of-sequence nor stop tokens are sampled before this many tokens."""
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    """Stop strings. Judged where text is made (API process, `LLM`), never by the worker."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    """The stop string, or the stop or end token where it has text, stays in the text."""
    skip_special_tokens: bool = True
    """Control tokens have no text."""
    seed: int = 0
    """Key of the counter-based noise, in [0, 2**63). Fixed at admission, so a resume repeats it."""
    logprobs: int | None = None
    """None: no log-probabilities; n: the sampled token's and the n most likely tokens'."""
    thinking: ThinkingBudget | None = None
    """None: reasoning may take as long as the output."""
    prompt_logprobs: int | None = None
    """As `logprobs`, for the tokens of the prompt after the first; such a context reuses no KV."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 2.0),
            ("min_p", 0.0, 1.0),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value}")
        if not (math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise ValueError(f"top_p must be greater than 0 and at most 1, not {self.top_p}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0.0):
            raise ValueError(
                f"repetition_penalty must be greater than 0, not {self.repetition_penalty}"
            )
        if self.top_k != -1 and not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k must be -1 (off) or 1 to 2**31 - 1, not {self.top_k}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens must be at least 0, not {self.min_new_tokens}")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and count < 0:
                raise ValueError(f"{name} must be at least 0, not {count}")
        if not all(map(math.isfinite, self.logit_bias.values())):
            raise ValueError(f"logit_bias must be finite, not {self.logit_bias}")
        if not all(self.bad_words):
            raise ValueError(
                f"bad_words must be sequences that are not empty, not {self.bad_words}"
            )
        if not all(self.stop):
            raise ValueError(f"stop must be strings that are not empty, not {self.stop}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, not {self.seed}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.repetition_penalty != 1.0
        )
