"""`ResponsesFormat`: generated text as a response, whole or as typed events.

The reply that is not streamed is what the stream's last event tells: both are made the same way.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
from orjson import Fragment

from quire.server.errors import ApiError, Overloaded
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.logprobs import chat_logprobs
from quire.server.openai.prepare_chat import PreparedChat
from quire.server.openai.replies import Usage
from quire.server.openai.responses.output import ResponseOutput, StreamEvent
from quire.server.openai.responses.replies import ResponseObject, ResponseUsage
from quire.server.openai.responses.schema import ResponsesRequest
from quire.server.openai.responses.token_spans import PieceReader
from quire.server.openai.sse import event
from quire.server.openai.wire_format import UsageNow, WireFormat


class ResponsesFormat(WireFormat):
    """One response. `keep` gets it when the stream that told it ends."""

    def __init__(
        self,
        response_id: str,
        request: ResponsesRequest,
        chat: PreparedChat,
        *,
        is_stored: bool,
        keep: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.model = chat.model
        self.tokenizer = chat.served.tokenizer
        self.shown_tokens = chat.plan.shown_tokens
        self.new_meter = chat.plan.reasoning_meter
        self._keep = keep
        self._reader = PieceReader(chat.plan.parser())
        self._output = ResponseOutput()
        self._num_events = 0
        self._is_cut = False
        self._response = _opened(response_id, request, chat, is_stored=is_stored)

    def whole(self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage) -> ResponseObject:
        for delta in deltas[0]:
            for _ in self._read(delta):
                pass
        return self._ended(usage)

    def begin(self, num_choices: int, usage: UsageNow) -> bytes:
        return self._events(
            {"type": name, "response": self._response}
            for name in ("response.created", "response.in_progress")
        )

    def feed(self, delta: ChoiceDelta, usage: UsageNow) -> bytes:
        return self._events(self._read(delta))

    def end(self, usage: UsageNow) -> bytes:
        response = self._ended(usage())
        self._keep(response)
        return self._events([{"type": f"response.{response['status']}", "response": response}])

    def failed(self, error: ApiError) -> bytes:
        for _ in self._output.close(is_cut=True):
            pass
        response: ResponseObject = {
            **self._response,
            "status": "failed",
            "output": self._output.items,  # type: ignore[typeddict-item]
            "error": {
                "code": "rate_limit_exceeded" if isinstance(error, Overloaded) else "server_error",
                "message": error.message,
            },
        }
        self._keep(response)
        told = {"code": error.code, "message": error.message, "param": error.param}
        return self._events(
            [{"type": "error", **told}, {"type": "response.failed", "response": response}]
        )

    def _read(self, delta: ChoiceDelta) -> Iterable[StreamEvent]:
        yield from self._output.add(self._reader.read(delta, self._logprobs(delta)))
        if delta.finish_reason is None:
            return
        self._is_cut = delta.finish_reason == "length"
        yield from self._output.ensure_message()
        yield from self._output.close(is_cut=self._is_cut)

    def _logprobs(self, delta: ChoiceDelta) -> Sequence[Fragment]:
        if not delta.logprobs:
            return ()
        # A stream tells each one six times, most of them at its end.
        told = chat_logprobs(self.tokenizer, delta.tokens, delta.logprobs)["content"]
        return [Fragment(orjson.dumps(entry)) for entry in told]

    def _ended(self, usage: Usage) -> ResponseObject:
        return {
            **self._response,
            "status": "incomplete" if self._is_cut else "completed",
            "completed_at": None if self._is_cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if self._is_cut else None,
            "output": self._output.items,  # type: ignore[typeddict-item]
            "usage": _usage(usage),
        }

    def _events(self, events: Iterable[Mapping[str, Any]]) -> bytes:
        told: list[bytes] = []
        for item in events:
            numbered = {**item, "sequence_number": self._num_events}
            told.append(event(numbered, item["type"]))
            self._num_events += 1
        return b"".join(told)


def _opened(
    response_id: str, request: ResponsesRequest, chat: PreparedChat, *, is_stored: bool
) -> ResponseObject:
    """A response before its output. Sampling is told as it is done, the model's defaults included."""
    params = chat.contexts[0].params
    choice = request.tool_choice
    text, tools = request.text, [tool.shown() for tool in request.tools]
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata,
        "model": chat.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": is_stored,
        "temperature": params.temperature,
        "text": {"format": text.shown_format(), "verbosity": text.verbosity},
        "tool_choice": choice if isinstance(choice, str) else choice.shown(),
        "tools": tools,
        "top_logprobs": request.top_logprobs,
        "top_p": params.top_p,
        "truncation": request.truncation,
        "usage": None,
        "user": request.user,
    }


def _usage(usage: Usage) -> ResponseUsage:
    details = usage.get("completion_tokens_details", {"reasoning_tokens": 0})
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": details["reasoning_tokens"]},
        "total_tokens": usage["total_tokens"],
    }
