"""How many prompt tokens a step may take while other requests wait for their next token.

Prefill and decode share a step, so a long prompt makes everybody wait (Sarathi-Serve,
https://arxiv.org/abs/2403.02310, cuts prompts for that reason). Where to cut depends on the machine,
so it is learned from the steps that ran. Cuts change no bit of any result.
"""

FIRST_PAGES = 8
"""A chunk's pages before anything is known of the machine."""
LEAST_SECONDS = 1e-9
"""Of a step, for clocks that show none."""
WEIGHT = 0.3
"""Of the newest step in what is believed."""


class PrefillBudget:
    """Keeps steps with decodes to about `target_seconds`, or to `stretch` steps of decodes alone
    where that is longer: on a slow model a chunk must not get so small that prompts never end."""

    def __init__(self, target_seconds: float, stretch: float, page_size: int) -> None:
        self._target = target_seconds
        self._stretch = stretch
        self._page_size = page_size
        self._decode_seconds = 0.0
        self._seconds_per_token: float | None = None

    @property
    def tokens(self) -> int:
        """Prompt tokens of a step with decodes: whole pages, at least one."""
        if self._seconds_per_token is None:
            return FIRST_PAGES * self._page_size
        limit = max(self._target, self._stretch * self._decode_seconds)
        room = max(0.0, limit - self._decode_seconds)
        return max(1, int(room / self._seconds_per_token) // self._page_size) * self._page_size

    def observe(self, num_decodes: int, prefill_tokens: int, seconds: float) -> None:
        """Learn from a step that took `seconds`."""
        if not prefill_tokens:
            self._decode_seconds = _moved(self._decode_seconds or seconds, seconds)
        elif prefill_tokens >= self._page_size:
            # Of a step that was faster than decodes alone are believed to be, a little is left.
            rest = seconds - (self._decode_seconds if num_decodes else 0.0)
            per_token = max(rest, 0.1 * seconds, LEAST_SECONDS) / prefill_tokens
            self._seconds_per_token = _moved(self._seconds_per_token or per_token, per_token)


def _moved(believed: float, seen: float) -> float:
    return (1 - WEIGHT) * believed + WEIGHT * seen
