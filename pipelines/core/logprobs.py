"""Log-probabilities of one token."""

import msgspec


class LogProbabilities(msgspec.Struct, array_like=True, frozen=True):
    """Natural-log probabilities from the unmodified logits (before penalties and temperature).

    `top_log_probabilities` maps the n most likely token ids to theirs, most likely first;
    empty when n is 0. `rank` is the token's own place, 1 for the most likely; 0 when it was not
    asked for.
    """

    token_log_probability: float
    top_log_probabilities: dict[int, float]
    rank: int = 0


class PromptLogProbabilities(msgspec.Struct, array_like=True, frozen=True):
    """Those of the prompt tokens of one context from position `start` on; position 0 has none."""

    request_id: int
    start: int
    entries: list[LogProbabilities]
