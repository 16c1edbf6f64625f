"""Log-probabilities in the two shapes OpenAI gives them."""

import itertools
from collections.abc import Sequence

from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.text.detokenizer import Detokenizer
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.openai.replies import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    TokenLogprob,
    TopLogprob,
)

LOWEST = -9999.0
"""Stands for a probability of 0: JSON has no infinity."""


def chat_logprobs(
    tokenizer: TextTokenizer, tokens: Sequence[int], logprobs: Sequence[LogProbabilities]
) -> ChatLogprobs:
    """`choices[].logprobs` of chat completions: one entry per token."""
    content: list[TokenLogprob] = [
        {
            **_entry(tokenizer, token, entry.token_log_probability),
            "top_logprobs": [
                _entry(tokenizer, other, value)
                for other, value in entry.top_log_probabilities.items()
            ],
        }
        for token, entry in zip(tokens, logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: TextTokenizer,
    tokens: Sequence[int],
    logprobs: Sequence[LogProbabilities],
    offsets: Sequence[int],
) -> CompletionLogprobs:
    """`choices[].logprobs` of completions: parallel lists, one item per token.

    `offsets` are the tokens' places in the text. Each `top_logprobs` has the sampled token too.
    Where two tokens look alike (parts of a character do), the likelier one counts.
    """
    result: CompletionLogprobs = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": list(offsets),
    }
    for token, entry in zip(tokens, logprobs, strict=True):
        text, value = token_text(tokenizer, token), finite(entry.token_log_probability)
        result["tokens"].append(text)
        result["token_logprobs"].append(value)
        top: dict[str, float] = {}
        for other, other_value in entry.top_log_probabilities.items():
            top.setdefault(token_text(tokenizer, other), finite(other_value))
        top.setdefault(text, value)
        result["top_logprobs"].append(top)
    return result


def echoed_logprobs(
    tokenizer: TextTokenizer,
    prompt: Sequence[int],
    logprobs: Sequence[LogProbabilities],
    count: int,
) -> CompletionLogprobs:
    """As `completion_logprobs` for an echoed prompt: its first token has null.

    `logprobs` are of the tokens after the first, with at least `count` likely ones each.
    """
    text = Detokenizer(tokenizer, starts_fresh=True)
    lengths = [len(text.feed(token)) for token in prompt]
    offsets = [0, *itertools.accumulate(lengths)][: len(prompt)]
    told = [LogProbabilities(e.token_log_probability, _first(e, count)) for e in logprobs]
    rest = completion_logprobs(tokenizer, prompt[1:], told, offsets[1:])
    return {
        "tokens": [token_text(tokenizer, prompt[0]), *rest["tokens"]],
        "token_logprobs": [None, *rest["token_logprobs"]],
        "top_logprobs": [None, *rest["top_logprobs"]],
        "text_offset": offsets,
    }


def joined_logprobs(
    first: CompletionLogprobs, second: CompletionLogprobs | None
) -> CompletionLogprobs:
    if second is None:
        return first
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def prompt_logprobs(
    tokenizer: TextTokenizer,
    prompt: Sequence[int],
    logprobs: Sequence[LogProbabilities],
    count: int,
) -> list[dict[str, PromptLogprob] | None]:
    """The reply field `prompt_logprobs`, as vLLM: per token an object by token id, the `count`
    most likely ones and the token itself; null for the first."""
    result: list[dict[str, PromptLogprob] | None] = [None]
    for token, entry in zip(prompt[1:], logprobs, strict=True):
        ranked = {
            other: (value, rank)
            for rank, (other, value) in enumerate(_first(entry, count).items(), start=1)
        }
        ranked.setdefault(token, (entry.token_log_probability, entry.rank))
        result.append(
            {
                str(other): {
                    "logprob": finite(value),
                    "rank": rank,
                    "decoded_token": token_text(tokenizer, other),
                }
                for other, (value, rank) in ranked.items()
            }
        )
    return result


def _first(entry: LogProbabilities, count: int) -> dict[int, float]:
    return dict(itertools.islice(entry.top_log_probabilities.items(), count))


def _entry(tokenizer: TextTokenizer, token: int, value: float) -> TopLogprob:
    data = tokenizer.token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": finite(value),
        "bytes": list(data),
    }


def token_text(tokenizer: TextTokenizer, token: int) -> str:
    """A token's text by itself; U+FFFD for bytes that are none."""
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def finite(value: float) -> float:
    """A log-probability that JSON can hold."""
    return max(LOWEST, value)
