"""A model's vocabulary as xgrammar sees it."""

from collections.abc import Sequence
from typing import Any

from quire.pipelines.tokenizer import TextTokenizer

_CONTROL = b"\xff"
_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))


def tokenizer_info(tokenizer: TextTokenizer, vocab_size: int, end_token_ids: Sequence[int]) -> Any:
    """xgrammar's `TokenizerInfo`: what each token below `vocab_size` stands for in bytes.

    Control tokens stand for bytes that no text has, so that a grammar lets them through where it
    names them by id, and in the free text of a structural tag, but never as part of a string.
    Bytes that no UTF-8 text has do not come at all. `end_token_ids` may come where the grammar is
    complete.
    """
    import xgrammar

    ends = frozenset(end_token_ids)
    vocabulary = [
        _bytes(tokenizer, id, is_end=id in ends)
        for id in range(min(tokenizer.vocab_size, vocab_size))
    ]
    return xgrammar.TokenizerInfo(
        vocabulary,
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=[id for id in end_token_ids if id < vocab_size],
    )


def _bytes(tokenizer: TextTokenizer, id: int, *, is_end: bool) -> bytes:
    data = tokenizer.token_bytes(id)
    if id in tokenizer.special_token_ids:
        return b"" if is_end else _CONTROL + data
    return b"" if _NEVER_IN_UTF8.intersection(data) else data
