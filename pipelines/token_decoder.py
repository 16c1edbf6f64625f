"""From a token's spelling in the vocabulary to the bytes it stands for.

Two families cover the models that write text: byte-level BPE, whose spellings write each byte as one
printable character (GPT-2's table), and sentencepiece, whose spellings write a space as U+2581 and
a byte as `<0x0A>`. BERT's WordPiece marks what goes on with a word (`##ing`); its text has a space
before each word and punctuation mark. All are described by the `decoder` of a tokenizer.json; where
there is none, tokens are words, and the tokenizers library writes spaces between them.
"""

import re
from collections.abc import Iterator
from typing import Any

from quire.config.errors import ModelError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MANY = 1 << 30
_NO_EFFECT = ("Fuse",)
_NO_SUFFIX = "\0"
"""The mark of suffixes where no token is one."""


class TokenDecoder:
    """Decodes one token at a time.

    `description` is the `decoder` object of a tokenizer.json, None where it is null.

    Raises:
        ModelError: a decoder that is not of these families.
    """

    def __init__(self, description: Any) -> None:
        self._byte_level: dict[str, int] | None = None
        self._replacements: list[tuple[str, str]] = []
        self._byte_fallback = False
        self._leading_spaces = 0
        self._suffix_mark: str | None = None
        if description is None:
            self._suffix_mark = _NO_SUFFIX
            self._leading_spaces = 1
            return
        for step in _flat(description):
            self._add(step)

    def decode(self, token: str) -> bytes:
        """The bytes of a token spelled `token`."""
        if self._byte_level is not None:
            try:
                return bytes([self._byte_level[character] for character in token])
            except KeyError:
                # A token added as plain text, with characters that the table does not have.
                return token.encode()
        if self._byte_fallback and (match := _BYTE.fullmatch(token)):
            return bytes.fromhex(match[1])
        if self._suffix_mark is not None:
            is_suffix = token.startswith(self._suffix_mark)
            return (token.removeprefix(self._suffix_mark) if is_suffix else f" {token}").encode()
        for pattern, content in self._replacements:
            token = token.replace(pattern, content)
        return token.encode()

    def strip_first(self, first: bytes) -> bytes:
        """The first token's bytes without the spaces that the tokenizer put before the text."""
        kept = first.lstrip(b" ")
        return first[min(self._leading_spaces, len(first) - len(kept)) :]

    def _add(self, step: dict[str, Any]) -> None:
        kind = step.get("type")
        match kind:
            case "ByteLevel":
                self._byte_level = dict(_byte_level_table())
            case "ByteFallback":
                self._byte_fallback = True
            case "Replace" if "String" in step["pattern"]:
                self._replacements.append((step["pattern"]["String"], step["content"]))
            case "Strip" if step["content"] == " " and step["stop"] == 0:
                self._leading_spaces = step["start"]
            case "Metaspace":
                self._replacements.append((step["replacement"], " "))
                if step.get("prepend_scheme", "always") != "never":
                    self._leading_spaces = _MANY
            case "WordPiece":
                self._suffix_mark = step["prefix"]
                self._leading_spaces = 1
            case _ if kind not in _NO_EFFECT:
                raise ModelError(
                    f"tokenizer.json: decoder: expected ByteLevel, or the sentencepiece steps "
                    f"Replace, ByteFallback, Fuse, Strip, Metaspace; found {kind or 'nothing'}"
                )


def _flat(description: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(description, dict):
        yield {}
    elif description.get("type") == "Sequence":
        for step in description["decoders"]:
            yield from _flat(step)
    else:
        yield description


def _byte_level_table() -> Iterator[tuple[str, int]]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the others for U+0100 upwards."""
    shifted = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            yield chr(byte), byte
        else:
            yield chr(0x100 + shifted), byte
            shifted += 1
