"""`TextStream`: one context's tokens to text, with stop strings and the reason of the end.

Streamed and whole replies, and the offline `LLM`, all make their text here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.text.detokenizer import Detokenizer
from quire.pipelines.text.stop_strings import StopStrings
from quire.pipelines.tokenizer import TextTokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What some tokens added.

    `num_tokens` of the fed tokens belong to the output: those after the one that completed a stop
    string do not. `offsets` says for each of them how many characters of text came before it,
    whether or not they are held back. `finish_reason` is None while the output goes on;
    `stop_reason` is the stop string or stop token that ended it.
    """

    text: str
    num_tokens: int
    offsets: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class TextStream:
    """The text of one context.

    Neither the end-of-sequence token nor a stop token nor the stop string is part of the text,
    unless the parameters ask for it.
    Stop strings are looked for in the text after the first `min_new_tokens` tokens.

    `starts_fresh`: the output is a text of its own (a chat reply), not the prompt's continuation.
    `shown_tokens`: control tokens that are text, after a CONTROL_MARK, whatever the parameters say.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        params: SamplingParams,
        *,
        starts_fresh: bool = False,
        shown_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._detokenizer = Detokenizer(
            tokenizer,
            starts_fresh=starts_fresh,
            skip_special_tokens=params.skip_special_tokens,
            shown_tokens=shown_tokens,
        )
        self._shows_end = params.include_stop_str_in_output
        self._stops = StopStrings(params.stop, include=self._shows_end)
        self._min_new_tokens = params.min_new_tokens
        self._num_tokens = 0
        self._num_characters = 0
        self.is_finished = False

    def feed(self, tokens: Sequence[int], status: TextGenerationStatus) -> TextDelta:
        """Add tokens; `status` is the context's after the last of them.

        Raises:
            ValueError: the stream is finished, or the status is FAILED.
        """
        if self.is_finished or status is TextGenerationStatus.FAILED:
            raise ValueError("no text after the end")
        pieces: list[str] = []
        offsets: list[int] = []
        for index, token in enumerate(tokens):
            offsets.append(self._num_characters)
            self._num_tokens += 1
            is_end = _ends_by_token(status) and index == len(tokens) - 1
            if is_end and not self._shows_end:
                break
            pieces.append(self._release(self._detokenizer.feed(token)))
            if self._stops.matched is not None:
                break
        if status.is_done and self._stops.matched is None:
            pieces += [self._release(self._detokenizer.finish()), self._stops.finish()]
        finish_reason, stop_reason = self._finish(status, tokens)
        self.is_finished = finish_reason is not None
        return TextDelta("".join(pieces), len(offsets), offsets, finish_reason, stop_reason)

    def _release(self, text: str) -> str:
        self._num_characters += len(text)
        if self._num_tokens <= self._min_new_tokens:
            return text
        return self._stops.feed(text)

    def _finish(
        self, status: TextGenerationStatus, tokens: Sequence[int]
    ) -> tuple[FinishReason | None, str | int | None]:
        if self._stops.matched is not None:
            return "stop", self._stops.matched
        match status:
            case TextGenerationStatus.END_OF_SEQUENCE:
                return "stop", None
            case TextGenerationStatus.STOP_TOKEN:
                return "stop", tokens[-1] if tokens else None
            case TextGenerationStatus.MAXIMUM_LENGTH:
                return "length", None
        return None, None


def _ends_by_token(status: TextGenerationStatus) -> bool:
    return status in (TextGenerationStatus.END_OF_SEQUENCE, TextGenerationStatus.STOP_TOKEN)
