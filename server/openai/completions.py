"""POST /v1/completions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.fill_in_middle import FillInMiddle
from quire.server.engine import Engine
from quire.server.errors import UnsupportedParameter
from quire.server.openai.admission import (
    build_contexts,
    check_room,
    constraint_of,
    grammar_of,
    tokenize,
)
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.generation import ChoiceDelta
from quire.server.openai.logprobs import (
    completion_logprobs,
    echoed_logprobs,
    joined_logprobs,
    prompt_logprobs,
)
from quire.server.openai.prompts import Prompt
from quire.server.openai.replies import CompletionChoice
from quire.server.openai.reply_format import ReplyFormat
from quire.server.openai.respond import respond
from quire.server.openai.schema import DEFAULT_COMPLETION_TOKENS, CompletionRequest
from quire.server.openai.served import ServedModel


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A choice's prompt, as replies may show it; `text` is empty unless it is echoed."""

    ids: list[int]
    text: str


class CompletionFormat(ReplyFormat):
    """Plain text; `prompts` has one for each choice."""

    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self,
        served: ServedModel,
        model: str,
        request: CompletionRequest,
        prompts: Sequence[ShownPrompt],
    ) -> None:
        super().__init__(served, model, request)
        self._prompts = prompts
        self._echoes = request.echo
        self._echoed_logprobs = request.logprobs if request.echo else None
        self._prompt_logprobs = request.prompt_logprobs

    def whole_choice(self, output: ChoiceDelta) -> Mapping[str, Any]:
        choice = self._choice(output)
        begin = self._beginning(output.index, output.prompt_logprobs)
        choice["text"] = begin["text"] + choice["text"]
        if begin["logprobs"] is not None:
            choice["logprobs"] = joined_logprobs(begin["logprobs"], choice["logprobs"])
        if self.shows_token_ids:
            choice["prompt_token_ids"] = begin["prompt_token_ids"]
        if self._prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(
                self.tokenizer,
                self._prompts[output.index].ids,
                output.prompt_logprobs or [],
                self._prompt_logprobs,
            )
        return choice

    def opening(self, index: int) -> list[Mapping[str, Any]]:
        # Log-probabilities of the prompt are known with the choice's first delta.
        if self._echoed_logprobs is not None or not (self._echoes or self.shows_token_ids):
            return []
        return [self._beginning(index, None)]

    def pieces(self, delta: ChoiceDelta) -> list[Mapping[str, Any]]:
        pieces: list[Mapping[str, Any]] = []
        if self._echoed_logprobs is not None and delta.prompt_logprobs is not None:
            pieces.append(self._beginning(delta.index, delta.prompt_logprobs))
        if delta.text or delta.logprobs or delta.finish_reason or self.shows_token_ids:
            pieces.append(self._choice(delta))
        return pieces

    def _beginning(self, index: int, told: list[LogProbabilities] | None) -> CompletionChoice:
        """What of the prompt is shown before the output."""
        prompt = self._prompts[index]
        choice = self._choice(ChoiceDelta(index, prompt.text if self._echoes else "", [], [], []))
        if self._echoed_logprobs is not None:
            choice["logprobs"] = echoed_logprobs(
                self.tokenizer, prompt.ids, told or [], self._echoed_logprobs
            )
        if self.shows_token_ids:
            choice["prompt_token_ids"] = prompt.ids
        return choice

    def _choice(self, delta: ChoiceDelta) -> CompletionChoice:
        logprobs = None
        if delta.logprobs:
            before = len(self._prompts[delta.index].text) if self._echoes else 0
            offsets = [before + offset for offset in delta.offsets]
            logprobs = completion_logprobs(self.tokenizer, delta.tokens, delta.logprobs, offsets)
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


async def create_completion(http: Request) -> Response:
    """Continue one or several prompts."""
    engine: Engine = http.app.state.engine
    check_room(http)
    served: ServedModel = http.app.state.served
    request = await read_request(http, CompletionRequest)
    model = served.resolve(request.model)
    served.check_generates()
    middle = _fill_in_middle(served, request)
    if middle is not None and middle.end_token_id is not None and not request.ignore_eos:
        ends = [*request.stop_token_ids, middle.end_token_id]
        request = request.model_copy(update={"stop_token_ids": ends})
    prompts = [
        await _token_ids(engine, served, request, prompt, middle) for prompt in request.prompt
    ]
    contexts = build_contexts(
        engine,
        served,
        request,
        prompts,
        param="prompt",
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        grammar=await grammar_of(http, served, request, await constraint_of(request)),
    )
    firsts = contexts[:: request.n]
    shown = [
        _shown(served, request, prompt, context)
        for prompt, context in zip(request.prompt, firsts, strict=True)
    ]
    shown = [prompt for prompt in shown for _ in range(request.n)]
    return await respond(
        http,
        request,
        contexts,
        CompletionFormat(served, model, request, shown),
        starts_fresh=False,
        headers=warning_headers(request),
    )


def _fill_in_middle(served: ServedModel, request: CompletionRequest) -> FillInMiddle | None:
    """What puts prompts and suffix together; None where there is no suffix.

    Raises:
        UnsupportedParameter: the model has no tokens for it.
    """
    found = FillInMiddle.of(served.tokenizer) if request.suffix else None
    if request.suffix and found is None:
        raise UnsupportedParameter("suffix", "the model has no tokens to fill in the middle")
    return found


async def _token_ids(
    engine: Engine,
    served: ServedModel,
    request: CompletionRequest,
    prompt: Prompt,
    middle: FillInMiddle | None,
) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    text, suffix, adds = prompt, request.suffix or "", request.add_special_tokens

    def encode(max_tokens: int | None) -> list[int]:
        if middle is not None:
            return middle.encode(text, suffix, adds, max_tokens=max_tokens)
        return served.tokenizer.encode(text, adds, max_tokens=max_tokens)

    is_cut = request.truncate_prompt_tokens is not None
    return await tokenize(engine, "prompt", encode, is_cut=is_cut)


def _shown(
    served: ServedModel, request: CompletionRequest, prompt: Prompt, context: TextContext
) -> ShownPrompt:
    ids = context.tokens.prompt.tolist()
    if not request.echo:
        return ShownPrompt(ids, "")
    if isinstance(prompt, str) and request.truncate_prompt_tokens is None:
        return ShownPrompt(ids, prompt)
    return ShownPrompt(ids, served.tokenizer.decode(ids))
