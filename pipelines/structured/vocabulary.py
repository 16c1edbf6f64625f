"""A model's vocabulary as xgrammar sees it."""

from collections.abc import Sequence
from typing import Any

from quire.pipelines.tokenizer import TextTokenizer

_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))


def tokenizer_info(tokenizer: TextTokenizer, vocab_size: int, end_token_ids: Sequence[int]) -> Any:
    """xgrammar's `TokenizerInfo`: what each token below `vocab_size` stands for in bytes.

    Control tokens stand for nothing, so no grammar lets them through as text; nor bytes that no
    UTF-8 text has. `end_token_ids` may come where the grammar is complete.
    """
    import xgrammar

    vocabulary = [_bytes(tokenizer, id) for id in range(min(tokenizer.vocab_size, vocab_size))]
    return xgrammar.TokenizerInfo(
        vocabulary,
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=[id for id in end_token_ids if id < vocab_size],
    )


def _bytes(tokenizer: TextTokenizer, id: int) -> bytes:
    data = b"" if id in tokenizer.special_token_ids else tokenizer.token_bytes(id)
    return b"" if _NEVER_IN_UTF8.intersection(data) else data
