"""POST /v1/completions."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.server.engine import Engine
from quire.server.openai.admission import build_contexts, shown_prompts, tokenize
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.logprobs import completion_logprobs
from quire.server.openai.replies import CompletionChoice
from quire.server.openai.reply_format import ReplyFormat
from quire.server.openai.respond import respond
from quire.server.openai.schema import DEFAULT_COMPLETION_TOKENS, CompletionRequest, Prompt
from quire.server.openai.served import ServedModel


class CompletionFormat(ReplyFormat):
    """Plain text; `echoes` has for each choice the prompt's text to begin with, or is empty."""

    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self,
        served: ServedModel,
        model: str,
        echoes: list[str],
        prompt_ids: Sequence[list[int]] = (),
    ) -> None:
        super().__init__(served, model, prompt_ids)
        self._echoes = echoes

    def whole_choice(self, output: ChoiceDelta) -> Mapping[str, Any]:
        choice = self._choice(output)
        if self._echoes:
            choice["text"] = self._echoes[output.index] + choice["text"]
        return {**choice, **self._prompt_of(output.index)}

    def opening(self, index: int) -> list[Mapping[str, Any]]:
        if not (self._echoes or self.prompt_ids):
            return []
        echo = self._echoes[index] if self._echoes else ""
        choice = self._choice(ChoiceDelta(index, echo, [], [], []))
        return [{**choice, **self._prompt_of(index)}]

    def pieces(self, delta: ChoiceDelta) -> list[Mapping[str, Any]]:
        if not (delta.text or delta.logprobs or delta.finish_reason or self.shows_token_ids):
            return []
        return [self._choice(delta)]

    def _choice(self, delta: ChoiceDelta) -> CompletionChoice:
        logprobs = None
        if delta.logprobs:
            logprobs = completion_logprobs(
                self.tokenizer, delta.tokens, delta.logprobs, delta.offsets
            )
        choice: CompletionChoice = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self.shows_token_ids:
            choice["token_ids"] = delta.tokens
        return choice

    def _prompt_of(self, index: int) -> dict[str, list[int]]:
        return {"prompt_token_ids": self.prompt_ids[index]} if self.prompt_ids else {}


async def create_completion(http: Request) -> Response:
    """Continue one or several prompts."""
    engine: Engine = http.app.state.engine
    engine.check_available()
    served: ServedModel = http.app.state.served
    request = await read_request(http, CompletionRequest)
    model = served.resolve(request.model)
    prompts = [await _token_ids(engine, served, request, prompt) for prompt in request.prompt]
    contexts = build_contexts(
        engine,
        served,
        request,
        prompts,
        param="prompt",
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
    )
    echoes = [_text(served, prompt) for prompt in request.prompt for _ in range(request.n)]
    if request.truncate_prompt_tokens is not None:
        echoes = [served.tokenizer.decode(c.tokens.prompt.tolist()) for c in contexts]
    return await respond(
        http,
        request,
        contexts,
        CompletionFormat(
            served, model, echoes if request.echo else [], shown_prompts(request, contexts)
        ),
        starts_fresh=False,
        headers=warning_headers(request),
    )


async def _token_ids(
    engine: Engine, served: ServedModel, request: CompletionRequest, prompt: Prompt
) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    text = prompt
    return await tokenize(
        engine,
        "prompt",
        lambda max_length: served.tokenizer.encode(
            text, request.add_special_tokens, max_tokens=max_length
        ),
        is_cut=request.truncate_prompt_tokens is not None,
    )


def _text(served: ServedModel, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt)
