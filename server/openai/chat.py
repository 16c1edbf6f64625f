"""POST /v1/chat/completions."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.server.engine import Engine
from quire.server.errors import InvalidRequest
from quire.server.openai.admission import build_contexts, grammar_of, tokenize
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.logprobs import chat_logprobs, prompt_logprobs
from quire.server.openai.replies import ChatChoice, ChatChunkChoice, ChatLogprobs, Delta, Usage
from quire.server.openai.reply_format import ReplyFormat
from quire.server.openai.respond import respond
from quire.server.openai.schema import ChatCompletionRequest, Conversation, Message
from quire.server.openai.served import ServedModel


class ChatFormat(ReplyFormat):
    """Messages, and in streams a role, pieces of content and an end without content."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self, served: ServedModel, model: str, request: ChatCompletionRequest, prompt: list[int]
    ) -> None:
        super().__init__(served, model, shows_token_ids=request.return_token_ids)
        self._prompt_ids = prompt
        self._prompt_logprobs = request.prompt_logprobs

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
        choice: ChatChoice = {
            "index": output.index,
            "message": {"role": "assistant", "content": output.text, "refusal": None},
            "logprobs": self._logprobs(output),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self.shows_token_ids:
            choice["token_ids"] = output.tokens
        return choice

    def opening(self, index: int) -> list[Mapping[str, Any]]:
        return [_chunk_choice(index, {"role": "assistant", "content": ""}, None)]

    def pieces(self, delta: ChoiceDelta) -> list[Mapping[str, Any]]:
        pieces: list[Mapping[str, Any]] = []
        if delta.text or delta.logprobs or self.shows_token_ids:
            content: Delta = {"content": delta.text} if delta.text else {}
            choice = _chunk_choice(delta.index, content, self._logprobs(delta))
            if self.shows_token_ids:
                choice["token_ids"] = delta.tokens
            pieces.append(choice)
        if delta.finish_reason is not None:
            end = _chunk_choice(delta.index, {}, None)
            end["finish_reason"] = delta.finish_reason
            end["stop_reason"] = delta.stop_reason
            pieces.append(end)
        return pieces

    def _prompt(self) -> dict[str, list[int]]:
        return {"prompt_token_ids": self._prompt_ids} if self.shows_token_ids else {}

    def _logprobs(self, delta: ChoiceDelta) -> ChatLogprobs | None:
        if not delta.logprobs:
            return None
        return chat_logprobs(self.tokenizer, delta.tokens, delta.logprobs)


def _chunk_choice(index: int, delta: Delta, logprobs: ChatLogprobs | None) -> ChatChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


async def create_chat_completion(http: Request) -> Response:
    """Generate replies to a conversation."""
    engine: Engine = http.app.state.engine
    engine.check_available()
    served: ServedModel = http.app.state.served
    request = await read_request(http, ChatCompletionRequest)
    model = served.resolve(request.model)
    is_cut = request.truncate_prompt_tokens is not None
    ids = await conversation_ids(engine, served, request, is_cut=is_cut)
    contexts = build_contexts(
        engine,
        served,
        request,
        [ids],
        param="messages",
        default_max_tokens=None,
        grammar=await grammar_of(http, served, request),
    )
    return await respond(
        http,
        request,
        contexts,
        ChatFormat(served, model, request, contexts[0].tokens.prompt.tolist()),
        starts_fresh=True,
        headers=warning_headers(request),
    )


async def conversation_ids(
    engine: Engine, served: ServedModel, request: Conversation, *, is_cut: bool = False
) -> list[int]:
    """The prompt's ids, of any length if it `is_cut` later.

    Raises:
        InvalidRequest: no chat template, one without such an option, or it refused the messages.
        ContextLengthExceeded: the text is too long to be tokenized at all.
    """
    template = served.tokenizer.chat_template
    if template is None:
        raise InvalidRequest(
            f"The model '{served.names[0]}' has no chat template; use /v1/completions",
            param="messages",
        )
    try:
        template.check_options(request.chat_template_kwargs)
    except ValueError as error:
        param = "chat_template_kwargs"
        raise InvalidRequest(f"'{param}': {error}", param=param, code="invalid_value") from None
    messages = template_messages(request.messages, knows_developer=template.knows_developer)
    return await tokenize(
        engine,
        "messages",
        lambda max_length: served.tokenizer.encode_chat(
            messages,
            request.chat_template_kwargs,
            add_generation_prompt=request.asks_for_reply,
            continue_final_message=request.continue_final_message,
            add_special_tokens=request.add_special_tokens,
            max_tokens=max_length,
        ),
        is_cut=is_cut,
    )


def template_messages(
    messages: Sequence[Message], *, knows_developer: bool
) -> list[dict[str, Any]]:
    """The messages as templates expect them.

    Templates that do not know the role developer drop or refuse it; to them it is system, whose
    place it took in OpenAI's interface.
    """
    rows: list[dict[str, Any]] = []
    for message in messages:
        is_renamed = message.role == "developer" and not knows_developer
        row: dict[str, Any] = {
            "role": "system" if is_renamed else message.role,
            "content": message.text,
        }
        reasoning = message.reasoning_content or message.reasoning
        for name, value in (
            ("name", message.name),
            ("tool_call_id", message.tool_call_id),
            ("reasoning_content", reasoning),
        ):
            if value is not None:
                row[name] = value
        rows.append(row)
    return rows
