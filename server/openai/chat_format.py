"""`ChatFormat`: generated text as assistant messages, whole or in pieces."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.logprobs import chat_logprobs, prompt_logprobs
from quire.server.openai.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    FinishReason,
    ToolCall,
    Usage,
)
from quire.server.openai.reply_format import ReplyFormat
from quire.server.openai.schema import ChatCompletionRequest
from quire.server.openai.served import ServedModel
from quire.server.openai.tools.events import Event
from quire.server.openai.tools.plan import ReplyPlan
from quire.server.openai.tools.reply_parser import ReplyParser

_NO_CALLS = ReplyParser(())


class ChatFormat(ReplyFormat):
    """Messages, and in streams a role, pieces of reasoning, content and calls, and an end without
    any. `plan` says what the text is made of, `reasoning_field` where reasoning goes."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        served: ServedModel,
        model: str,
        request: ChatCompletionRequest,
        prompt: list[int],
        *,
        plan: ReplyPlan,
        reasoning_field: str = "reasoning_content",
    ) -> None:
        super().__init__(served, model, request)
        self.shown_tokens = plan.shown_tokens
        self.new_meter = plan.reasoning_meter
        self._prompt_ids = prompt
        self._prompt_logprobs = request.prompt_logprobs
        self._plan = plan
        self._reasoning_field = reasoning_field
        self._parsers: dict[int, ReplyParser | None] = {}

    def whole(self, deltas: Sequence[Sequence[ChoiceDelta]], usage: Usage) -> dict[str, Any]:
        reply = {**super().whole(deltas, usage), **self._prompt()}
        if self._prompt_logprobs is not None:
            reply["prompt_logprobs"] = prompt_logprobs(
                self.tokenizer,
                self._prompt_ids,
                deltas[0][0].prompt_logprobs or [],
                self._prompt_logprobs,
            )
        return reply

    def chunk(
        self, choices: Sequence[Mapping[str, Any]], usage: Usage | None = None
    ) -> dict[str, Any]:
        chunk = super().chunk(choices, usage)
        is_opening = bool(choices) and "role" in choices[0]["delta"]
        return {**chunk, **self._prompt()} if is_opening else chunk

    def whole_choice(self, output: ChoiceDelta) -> ChatChoice:
        parser = self._plan.parser()
        events = [Event("content", output.text)]
        if parser is not None:
            events = [*parser.feed(output.text), *parser.finish()]
        choice: ChatChoice = {
            "index": output.index,
            "message": self._message(output.index, events),
            "logprobs": self._logprobs(output),
            "finish_reason": _finish_reason(output, parser or _NO_CALLS),
            "stop_reason": output.stop_reason,
        }
        if self.shows_token_ids:
            choice["token_ids"] = output.tokens
        return choice

    def opening(self, index: int) -> list[Mapping[str, Any]]:
        return [_chunk_choice(index, {"role": "assistant", "content": ""}, None)]

    def pieces(self, delta: ChoiceDelta) -> list[Mapping[str, Any]]:
        if delta.index not in self._parsers:
            self._parsers[delta.index] = self._plan.parser()
        parser = self._parsers[delta.index]
        first_call = 0
        events = [Event("content", delta.text)] if delta.text else []
        if parser is not None:
            first_call = parser.num_calls
            events = parser.feed(delta.text)
            if delta.finish_reason is not None:
                events += parser.finish()
        pieces = [
            _chunk_choice(delta.index, piece, None)
            for piece in self._deltas(delta.index, events, first_call)
        ]
        if not pieces and (delta.logprobs or self.shows_token_ids):
            # Its text is held back, or shows nowhere; its tokens still count.
            pieces.append(_chunk_choice(delta.index, {}, None))
        if pieces:
            pieces[0]["logprobs"] = self._logprobs(delta)
            if self.shows_token_ids:
                pieces[0]["token_ids"] = delta.tokens
        if delta.finish_reason is not None:
            end = _chunk_choice(delta.index, {}, None)
            end["finish_reason"] = _finish_reason(delta, parser or _NO_CALLS)
            end["stop_reason"] = delta.stop_reason
            pieces.append(end)
        return list(pieces)

    def _message(self, index: int, events: Sequence[Event]) -> AssistantMessage:
        content = "".join(text for kind, text in events if kind == "content")
        reasoning = "".join(text for kind, text in events if kind == "reasoning")
        calls: list[ToolCall] = []
        for kind, text in events:
            if kind == "call":
                calls.append(
                    {
                        "id": self._call_id(index, len(calls)),
                        "type": "function",
                        "function": {"name": text, "arguments": ""},
                    }
                )
            elif kind == "arguments":
                calls[-1]["function"]["arguments"] += text
        message: AssistantMessage = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message[self._reasoning_field] = reasoning  # type: ignore[literal-required]
        if calls:
            message["content"] = content or None
            message["tool_calls"] = calls
        return message

    def _deltas(self, index: int, events: Sequence[Event], first_call: int) -> list[Delta]:
        """`events` as deltas; `first_call` calls were opened before."""
        deltas: list[Delta] = []
        call = first_call - 1
        for kind, text in events:
            if kind == "content":
                deltas.append({"content": text})
            elif kind == "reasoning":
                deltas.append({self._reasoning_field: text})  # type: ignore[misc]
            elif kind == "arguments":
                deltas.append({"tool_calls": [{"index": call, "function": {"arguments": text}}]})
            elif kind == "call":
                call += 1
                opened: Delta = {
                    "tool_calls": [
                        {
                            "index": call,
                            "id": self._call_id(index, call),
                            "type": "function",
                            "function": {"name": text, "arguments": ""},
                        }
                    ]
                }
                deltas.append(opened)
        return deltas

    def _call_id(self, choice: int, call: int) -> str:
        return "call_" + hashlib.sha256(f"{self.id}/{choice}/{call}".encode()).hexdigest()[:24]

    def _prompt(self) -> dict[str, list[int]]:
        return {"prompt_token_ids": self._prompt_ids} if self.shows_token_ids else {}

    def _logprobs(self, delta: ChoiceDelta) -> ChatLogprobs | None:
        if not delta.logprobs:
            return None
        return chat_logprobs(self.tokenizer, delta.tokens, delta.logprobs)


def _finish_reason(delta: ChoiceDelta, parser: ReplyParser) -> FinishReason | None:
    """A reply that stopped with calls ended for them, unless a stop string cut one."""
    was_cut = parser.in_call and isinstance(delta.stop_reason, str)
    if delta.finish_reason == "stop" and parser.num_calls and not was_cut:
        return "tool_calls"
    return delta.finish_reason


def _chunk_choice(index: int, delta: Delta, logprobs: ChatLogprobs | None) -> ChatChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
