"""Prompts for text between a prefix and a suffix, for models that were trained to fill it in.

Bavarian et al., https://arxiv.org/abs/2207.14255. Only the tokens that mark the parts are control
tokens: whatever the parts spell is text.
"""

from dataclasses import dataclass

from quire.pipelines.tokenizer import TextTokenizer


@dataclass(frozen=True)
class _Marks:
    """`middle` is None where the suffix comes first and the middle goes on with the prefix. `end` is
    what the model writes after the middle, where that is not its end of text."""

    prefix: str
    suffix: str
    middle: str | None
    end: str | None = None


_MARKS = (
    _Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"),
    _Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    _Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    _Marks("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    _Marks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    _Marks("[PREFIX]", "[SUFFIX]", None),
)
"""Qwen Coder and CodeGemma, StarCoder, SantaCoder, DeepSeek Coder, Code Llama, GLM, Codestral."""


class FillInMiddle:
    """`end_token_id` ends the output besides the model's own; None where nothing else does."""

    def __init__(self, tokenizer: TextTokenizer, marks: _Marks) -> None:
        self._tokenizer = tokenizer
        self._marks = marks
        self.end_token_id = None if marks.end is None else tokenizer.token_id(marks.end)

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "FillInMiddle | None":
        """By the tokens that the model has; None where it has none of them."""
        for marks in _MARKS:
            names = filter(None, (marks.prefix, marks.suffix, marks.middle))
            if all(tokenizer.token_id(name) is not None for name in names):
                return cls(tokenizer, marks)
        return None

    def encode(
        self, prefix: str, suffix: str, add_special_tokens: bool = True, *, max_tokens: int | None
    ) -> list[int]:
        """The prompt's ids; `add_special_tokens` and the errors as of `TextTokenizer.encode`."""
        marks = self._marks
        names = tuple(filter(None, (marks.prefix, marks.suffix, marks.middle, marks.end)))
        before = self._tokenizer.encode_plain(prefix, also=names, max_tokens=max_tokens)
        after = self._tokenizer.encode_plain(
            suffix, also=names, starts_fresh=False, max_tokens=max_tokens
        )
        parts = [(marks.prefix, before), (marks.suffix, after), (marks.middle, [])]
        if marks.middle is None:
            parts = [(marks.suffix, after), (marks.prefix, before)]
        ids = self._tokenizer.start_token_ids if add_special_tokens else []
        for name, text in parts:
            mark = self._tokenizer.token_id(name or "")
            assert mark is not None
            ids = [*ids, mark, *text]
        return ids
