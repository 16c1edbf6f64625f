"""Tokens to text, one token at a time: what is returned never has to be taken back."""

import codecs

from quire.pipelines.tokenizer import TextTokenizer

CONTROL_MARK = "\ufdd0"
"""Stands before the spelling of a shown control token, which so differs from the same spelling in
the model's own words. Unicode reserves it for use inside a program."""


class Detokenizer:
    """Decodes a growing sequence of tokens.

    The pieces joined equal `tokenizer.decode` of all tokens, however they are fed. Special tokens
    have no text unless `skip_special_tokens` is False; those of `shown_tokens` always have, after a
    CONTROL_MARK, which is U+FFFD where it is the model's own. Bytes of an unfinished character are
    held back until the character is complete; bytes that cannot become UTF-8 are U+FFFD.

    `starts_fresh`: see `TextTokenizer.decode`.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        starts_fresh: bool = False,
        skip_special_tokens: bool = True,
        shown_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._silent = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._silent -= shown_tokens
        self._shown = shown_tokens
        self._strip_next = starts_fresh
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that `token` completes."""
        if token in self._silent:
            return ""
        data = self._tokenizer.token_bytes(token)
        if self._strip_next:
            self._strip_next = False
            data = self._tokenizer.fresh_bytes(data)
        if token in self._shown:
            return self._decoder.decode(CONTROL_MARK.encode() + data)
        text = self._decoder.decode(data)
        return text.replace(CONTROL_MARK, "\ufffd") if self._shown else text

    def finish(self) -> str:
        """What the bytes still held back amount to."""
        return self._decoder.decode(b"", final=True)
