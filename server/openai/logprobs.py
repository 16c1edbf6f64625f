"""Log-probabilities in the two shapes OpenAI gives them."""

from collections.abc import Sequence

from quire.pipelines.core.logprobs import LogProbabilities
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.openai.replies import (
    ChatLogprobs,
    CompletionLogprobs,
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
        "tokens": [_text(tokenizer, token) for token in tokens],
        "token_logprobs": [_finite(entry.token_log_probability) for entry in logprobs],
        "top_logprobs": [],
        "text_offset": list(offsets),
    }
    for text, value, entry in zip(
        result["tokens"], result["token_logprobs"], logprobs, strict=True
    ):
        top: dict[str, float] = {}
        for other, other_value in entry.top_log_probabilities.items():
            top.setdefault(_text(tokenizer, other), _finite(other_value))
        top.setdefault(text, value)
        result["top_logprobs"].append(top)
    return result


def _entry(tokenizer: TextTokenizer, token: int, value: float) -> TopLogprob:
    data = tokenizer.token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": _finite(value),
        "bytes": list(data),
    }


def _text(tokenizer: TextTokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finite(value: float) -> float:
    return max(LOWEST, value)
