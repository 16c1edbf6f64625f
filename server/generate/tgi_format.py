"""`TgiFormat`: generated text as text-generation-inference tells it, whole or token by token.

The shapes are those of `GenerateResponse` and `StreamResponse` in its router/src/lib.rs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.text.detokenizer import Detokenizer
from quire.server.errors import ApiError
from quire.server.generate.error_body import tgi_body
from quire.server.generate.tgi_schema import Parameters
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.logprobs import finite, token_text
from quire.server.openai.replies import Usage
from quire.server.openai.served import ServedModel
from quire.server.openai.sse import event
from quire.server.openai.wire_format import UsageNow, WireFormat, joined

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class PrefillToken(TypedDict):
    """The first one has no probability."""

    id: int
    text: str
    logprob: float | None


class Token(TypedDict):
    id: int
    text: str
    logprob: float
    special: bool


class Details(TypedDict):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: NotRequired[list[list[Token]]]


class Generated(TypedDict):
    generated_text: str
    details: NotRequired[Details]


class StreamDetails(TypedDict):
    finish_reason: FinishReason
    generated_tokens: int
    input_length: int
    seed: int | None


class StreamedToken(TypedDict):
    """The last one of a stream has the text, and the details if the request asks for them."""

    index: int
    token: Token
    top_tokens: NotRequired[list[Token]]
    generated_text: str | None
    details: StreamDetails | None


class TgiFormat(WireFormat):
    """One choice. `inputs` and `prompt` are the same, as text and as tokens; `seed` is None where
    nothing is left to chance."""

    def __init__(
        self,
        served: ServedModel,
        parameters: Parameters,
        *,
        inputs: str,
        prompt: Sequence[int],
        seed: int | None,
        in_list: bool,
    ) -> None:
        self.tokenizer = served.tokenizer
        self.model = served.names[0]
        self._parameters = parameters
        self._inputs = inputs
        self._prompt = prompt
        self._seed = seed
        self._detokenizer = Detokenizer(served.tokenizer, skip_special_tokens=False)
        self._text = inputs if parameters.return_full_text else ""
        self._num_told = 0
        self._in_list = in_list

    def whole(
        self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage
    ) -> Mapping[str, Any] | Sequence[Any]:
        output = joined(deltas[0])
        reply: Generated = {"generated_text": self._text + output.text}
        if self._parameters.details or self._parameters.decoder_input_details:
            reply["details"] = {
                "finish_reason": _finish_reason(output),
                "generated_tokens": usage["completion_tokens"],
                "seed": self._seed,
                "prefill": self._prefill(output.prompt_logprobs),
                "tokens": self._tokens(output),
            }
            if self._parameters.top_n_tokens:
                reply["details"]["top_tokens"] = [*map(self._top, output.logprobs)]
        return [reply] if self._in_list else reply

    def begin(self, num_choices: int, usage: UsageNow) -> bytes:
        return b""

    def feed(self, delta: ChoiceDelta, usage: UsageNow) -> bytes:
        self._text += delta.text
        told: list[StreamedToken] = []
        for token, logprobs in zip(self._tokens(delta), delta.logprobs, strict=True):
            self._num_told += 1
            piece: StreamedToken = {
                "index": self._num_told,
                "token": token,
                "generated_text": None,
                "details": None,
            }
            if self._parameters.top_n_tokens:
                piece["top_tokens"] = self._top(logprobs)
            told.append(piece)
        if delta.finish_reason is not None and told:
            told[-1]["generated_text"] = self._text
            if self._parameters.details:
                now = usage()
                told[-1]["details"] = {
                    "finish_reason": _finish_reason(delta),
                    "generated_tokens": now["completion_tokens"],
                    "input_length": now["prompt_tokens"],
                    "seed": self._seed,
                }
        return b"".join(map(event, told))

    def end(self, usage: UsageNow) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        return event(tgi_body(error))

    def _tokens(self, delta: ChoiceDelta) -> list[Token]:
        """Each with the text that it completes; control tokens have theirs."""
        return [
            self._token(id, self._detokenizer.feed(id), entry.token_log_probability)
            for id, entry in zip(delta.tokens, delta.logprobs, strict=True)
        ]

    def _top(self, entry: LogProbabilities) -> list[Token]:
        return [
            self._token(id, token_text(self.tokenizer, id), value)
            for id, value in entry.top_log_probabilities.items()
        ]

    def _prefill(self, told: Sequence[LogProbabilities] | None) -> list[PrefillToken]:
        if not self._parameters.decoder_input_details:
            return []
        logprobs = [None, *(finite(entry.token_log_probability) for entry in told or ())]
        return [
            {"id": id, "text": token_text(self.tokenizer, id), "logprob": logprob}
            for id, logprob in zip(self._prompt, logprobs, strict=True)
        ]

    def _token(self, id: int, text: str, logprob: float) -> Token:
        return {
            "id": id,
            "text": text,
            "logprob": finite(logprob),
            "special": id in self.tokenizer.special_token_ids,
        }


def _finish_reason(delta: ChoiceDelta) -> FinishReason:
    if delta.finish_reason == "length":
        return "length"
    return "eos_token" if delta.stop_reason is None else "stop_sequence"
