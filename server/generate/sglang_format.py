"""`SglangFormat`: generated text as SGLang's native route tells it; a stream says all of it anew.

The shapes are those of `TokenizerManager._handle_batch_output`.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from quire.pipelines.core.logprobs import LogProbabilities
from quire.server.errors import ApiError
from quire.server.generate.sglang_schema import SglangRequest
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.logprobs import finite, token_text
from quire.server.openai.replies import Usage
from quire.server.openai.served import ServedModel
from quire.server.openai.sse import event
from quire.server.openai.wire_format import UsageNow, WireFormat, joined

_DONE = b"data: [DONE]\n\n"


class FinishReason(TypedDict):
    """`matched`: the stop string, or the token that ended the text."""

    type: Literal["stop", "length"]
    matched: NotRequired[str | int]
    length: NotRequired[int]


Logprob = list[float | str | None]
"""Log-probability, token id, and the token's text or null."""


class MetaInfo(TypedDict):
    """`e2e_latency`: seconds, when the text is complete. Log-probabilities of the prompt begin with
    one that is null."""

    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: NotRequired[float]
    input_token_logprobs: NotRequired[list[Logprob]]
    output_token_logprobs: NotRequired[list[Logprob]]
    input_top_logprobs: NotRequired[list[list[Logprob] | None]]
    output_top_logprobs: NotRequired[list[list[Logprob]]]


class Generated(TypedDict):
    """`index`: in a stream of several."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: NotRequired[int]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reply is to: its id and the tokens of its prompt."""

    rid: str
    prompt: Sequence[int]


@dataclass(slots=True)
class _SoFar:
    """What of a choice was told; each delta is spelled out once, however often it is told."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: dict[str, Any] = field(default_factory=dict)


class SglangFormat(WireFormat):
    """`asked` has one for each choice; `arrival` is the request's, by the monotonic clock."""

    def __init__(
        self,
        served: ServedModel,
        request: SglangRequest,
        asked: Sequence[Asked],
        *,
        arrival: float,
    ) -> None:
        self.tokenizer = served.tokenizer
        self.model = served.names[0]
        self._request = request
        self._asked = asked
        self._arrival = arrival
        self._is_list = request.is_batch or len(asked) > 1
        self._so_far = [_SoFar() for _ in asked]

    def whole(
        self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage
    ) -> Mapping[str, Any] | Sequence[Any]:
        replies = [self._reply(joined(pieces)) for pieces in deltas]
        return replies if self._is_list else replies[0]

    def begin(self, num_choices: int, usage: UsageNow) -> bytes:
        return b""

    def feed(self, delta: ChoiceDelta, usage: UsageNow) -> bytes:
        reply = self._reply(delta)
        if self._is_list:
            reply["index"] = delta.index
        return event(reply)

    def end(self, usage: UsageNow) -> bytes:
        return _DONE

    def failed(self, error: ApiError) -> bytes:
        return event(error.body) + _DONE

    def _reply(self, delta: ChoiceDelta) -> Generated:
        """All of a choice, with what `delta` adds."""
        asked, output = self._asked[delta.index], self._so_far[delta.index]
        output.text += delta.text
        output.tokens += delta.tokens
        meta: MetaInfo = {
            "id": asked.rid,
            "finish_reason": _finish_reason(delta, output.tokens),
            "prompt_tokens": len(asked.prompt),
            "completion_tokens": len(output.tokens),
            "cached_tokens": delta.cached_tokens,
        }
        if delta.finish_reason is not None:
            meta["e2e_latency"] = time.monotonic() - self._arrival
        if self._request.return_logprob:
            if not output.logprobs:
                output.logprobs = self._of_prompt(asked.prompt, delta.prompt_logprobs or ())
            self._add(output.logprobs, delta)
            meta = cast(MetaInfo, {**meta, **output.logprobs})
        return {"text": output.text, "output_ids": output.tokens, "meta_info": meta}

    def _of_prompt(
        self, prompt: Sequence[int], told: Sequence[LogProbabilities]
    ) -> dict[str, list[Any]]:
        """The log-probabilities from where the request wants them; none yet of the output."""
        start = self._request.logprob_start_len
        rest = prompt[start:] if start >= 0 else ()
        entries = told[start:] if start >= 0 else ()
        first = [self._logprob(token, None) for token in rest[:1]]
        logprobs: dict[str, list[Any]] = {
            "input_token_logprobs": first + self._chosen(rest[1:], entries),
            "output_token_logprobs": [],
        }
        if self._request.top_logprobs_num:
            logprobs["input_top_logprobs"] = [*(None for _ in first), *map(self._top, entries)]
            logprobs["output_top_logprobs"] = []
        return logprobs

    def _add(self, logprobs: Mapping[str, list[Any]], delta: ChoiceDelta) -> None:
        logprobs["output_token_logprobs"].extend(self._chosen(delta.tokens, delta.logprobs))
        if self._request.top_logprobs_num:
            logprobs["output_top_logprobs"].extend(map(self._top, delta.logprobs))

    def _chosen(self, tokens: Sequence[int], entries: Sequence[LogProbabilities]) -> list[Logprob]:
        return [
            self._logprob(token, entry.token_log_probability)
            for token, entry in zip(tokens, entries, strict=True)
        ]

    def _top(self, entry: LogProbabilities) -> list[Logprob]:
        likely = itertools.islice(
            entry.top_log_probabilities.items(), self._request.top_logprobs_num
        )
        return [self._logprob(token, value) for token, value in likely]

    def _logprob(self, token: int, value: float | None) -> Logprob:
        is_spelled = self._request.return_text_in_logprobs
        text = token_text(self.tokenizer, token) if is_spelled else None
        return [None if value is None else finite(value), token, text]


def _finish_reason(delta: ChoiceDelta, tokens: Sequence[int]) -> FinishReason | None:
    if delta.finish_reason is None:
        return None
    if delta.finish_reason == "length":
        return {"type": "length", "length": len(tokens)}
    matched = delta.stop_reason
    return {"type": "stop", "matched": tokens[-1] if matched is None else matched}
