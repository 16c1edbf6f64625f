"""How a context's generation stands."""

from enum import IntEnum


class TextGenerationStatus(IntEnum):
    """Why a context still runs, or why it ended. Travels as one byte per row in `StepOutput`."""

    ACTIVE = 0
    END_OF_SEQUENCE = 1
    """The model sampled its end-of-sequence token."""
    STOP_TOKEN = 2
    """The model sampled one of the request's `stop_token_ids`."""
    MAXIMUM_LENGTH = 3
    """`max_new_tokens` or the context's `max_length` is reached."""
    FAILED = 4
    """This request alone failed (for example its logits held NaN); the others go on."""

    @property
    def is_done(self) -> bool:
        return self is not TextGenerationStatus.ACTIVE
