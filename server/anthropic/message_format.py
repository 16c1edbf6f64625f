"""`MessageFormat`: generated text as a message of content blocks, whole or as events.

    message_start
    content_block_start, content_block_delta.., content_block_stop    for each block
    message_delta, message_stop                                       or error

https://platform.claude.com/docs/en/build-with-claude/streaming
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from quire.server.anthropic import replies
from quire.server.anthropic.block_events import BlockWriter, accumulated
from quire.server.anthropic.error_body import anthropic_body
from quire.server.errors import ApiError
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.replies import Usage
from quire.server.openai.served import ServedModel
from quire.server.openai.sse import event
from quire.server.openai.tools.events import Event
from quire.server.openai.tools.plan import ReplyPlan
from quire.server.openai.wire_format import UsageNow, WireFormat, joined


class MessageFormat(WireFormat):
    """One choice as a message. `plan` reads the text, `max_tokens` tells the request's own limit
    from the context's, and without `shows_thinking` reasoning is a block without its text."""

    ping = event({"type": "ping"}, "ping")

    def __init__(
        self,
        served: ServedModel,
        model: str,
        *,
        plan: ReplyPlan,
        max_tokens: int,
        shows_thinking: bool = True,
    ) -> None:
        self.tokenizer = served.tokenizer
        self.model = model
        self.shown_tokens = plan.shown_tokens
        self.new_meter = plan.reasoning_meter
        self._parser = plan.parser()
        self._max_tokens = max_tokens
        self._id = f"msg_{uuid.uuid4().hex}"
        self._blocks = BlockWriter(self._id, shows_thinking=shows_thinking)
        self._last: ChoiceDelta | None = None

    def whole(self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage) -> Mapping[str, Any]:
        told = [*self._fed(joined(deltas[0])), *self._blocks.close()]
        message = self._message(usage)
        message["content"] = accumulated(told)
        end = self._end(usage)
        message["stop_reason"] = end["stop_reason"]
        message["stop_sequence"] = end["stop_sequence"]
        return message

    def begin(self, num_choices: int, usage: UsageNow) -> bytes:
        return _events([{"type": "message_start", "message": self._message(usage())}])

    def feed(self, delta: ChoiceDelta, usage: UsageNow) -> bytes:
        return _events(self._fed(delta))

    def end(self, usage: UsageNow) -> bytes:
        now = usage()
        last: replies.MessageDelta = {
            "type": "message_delta",
            "delta": self._end(now),
            "usage": _usage(now),
        }
        return _events([*self._blocks.close(), last, {"type": "message_stop"}])

    def failed(self, error: ApiError) -> bytes:
        return event(anthropic_body(error), "error")

    def _fed(self, delta: ChoiceDelta) -> list[replies.BlockEvent]:
        self._last = delta
        if self._parser is None:
            return self._blocks.feed([Event("content", delta.text)] if delta.text else [])
        found = self._parser.feed(delta.text)
        if delta.finish_reason is not None:
            found += self._parser.finish()
        return self._blocks.feed(found)

    def _message(self, usage: Usage) -> replies.Message:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": _usage(usage),
        }

    def _end(self, usage: Usage) -> replies.End:
        assert self._last is not None
        reason: replies.StopReason = "end_turn"
        sequence = None
        if self._last.finish_reason == "length":
            is_asked = usage["completion_tokens"] >= self._max_tokens
            reason = "max_tokens" if is_asked else "model_context_window_exceeded"
        elif isinstance(self._last.stop_reason, str):
            reason, sequence = "stop_sequence", self._last.stop_reason
        elif self._parser is not None and self._parser.num_calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None}


def _usage(usage: Usage) -> replies.Usage:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    told: replies.Usage = {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }
    details = usage.get("completion_tokens_details")
    if details is not None:
        told["output_tokens_details"] = {"thinking_tokens": details["reasoning_tokens"]}
    return told


def _events(told: Sequence[replies.Event]) -> bytes:
    return b"".join(event(value, value["type"]) for value in told)
