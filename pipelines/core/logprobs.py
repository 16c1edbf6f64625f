"""Log-probabilities of one generated token."""

import msgspec


class LogProbabilities(msgspec.Struct, array_like=True, frozen=True):
    """Natural-log probabilities from the unmodified logits (before penalties and temperature).

    `top_log_probabilities` maps the n most likely token ids to theirs, most likely first;
    empty when n is 0.
    """

    token_log_probability: float
    top_log_probabilities: dict[int, float]
