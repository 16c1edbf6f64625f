"""A reply plan's grammar, compiled for a vocabulary of bytes, and walks through it."""

import functools
import random
from typing import Any

import xgrammar
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from quire.pipelines.structured.vocabulary import tokenizer_info
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.openai.tools.formats import FORMATS
from quire.server.openai.tools.plan import ReplyPlan
from quire.server.openai.tools.thinking import THINK_TAGS

MARKS = sorted(
    {mark for row in FORMATS for mark in (*row.openings, *row.closings, *row.inner_marks)}
    | set(THINK_TAGS[0])
)


@functools.cache
def tokenizer_with(special: bool) -> TextTokenizer:
    """One token per byte, and the formats' marks as control tokens or as added text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: at for at, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<other>"])
    marks = [mark for mark in MARKS if mark != "functools["]
    (backend.add_special_tokens if special else backend.add_tokens)(marks)
    return TextTokenizer(backend.to_str().encode(), {"eos_token": "<eos>"})


class Grammar:
    def __init__(self, plan: ReplyPlan, special: bool, answer: Any = None) -> None:
        found, self.warnings = plan.grammar(answer)
        assert found is not None and found[1].kind == "structural_tag"
        self.plan = plan
        self.tokenizer = tokenizer_with(special)
        self.eos = self.tokenizer.special_tokens["<eos>"]
        size = self.tokenizer.vocab_size
        info = tokenizer_info(self.tokenizer, size, [self.eos])
        compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.compiled = compiler.compile_structural_tag(found[1].source)
        self.mask = xgrammar.allocate_token_bitmask(1, size)

    def takes(self, text: str) -> bool | None:
        """Whether `text` may be written: as a whole reply, else None if as its beginning."""
        matcher = xgrammar.GrammarMatcher(self.compiled)
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            matcher.fill_next_token_bitmask(self.mask, 0)
            if not self._allows(token):
                return False
            assert matcher.accept_token(token)
        matcher.fill_next_token_bitmask(self.mask, 0)
        return True if self._allows(self.eos) else None

    def walk(self, rng: random.Random, steps: int = 600) -> str | None:
        """A random reply; None if it does not end."""
        matcher = xgrammar.GrammarMatcher(self.compiled)
        tokens: list[int] = []
        for _ in range(steps):
            matcher.fill_next_token_bitmask(self.mask, 0)
            allowed = [id for id in range(self.tokenizer.vocab_size) if self._allows(id)]
            assert allowed, self.tokenizer.decode(tokens, skip_special_tokens=False)
            if allowed == [self.eos] or (self.eos in allowed and rng.random() < 0.8):
                return self.tokenizer.decode(tokens, skip_special_tokens=False)
            spaces = self.tokenizer.encode(" \n\t\r")
            kept = [id for id in allowed if id not in (*spaces, self.eos)] or allowed
            tokens.append(rng.choice(kept))
            assert matcher.accept_token(tokens[-1])
        return None

    def _allows(self, token: int) -> bool:
        return bool((int(self.mask[0, token // 32]) >> (token % 32)) & 1)

    def read(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        parser = self.plan.parser()
        assert parser is not None
        content, calls = "", []
        for kind, piece in parser.feed(self.plan.dialect.shown(text)) + parser.finish():
            if kind == "content":
                content += piece
            elif kind == "call":
                calls.append((piece, ""))
            elif kind == "arguments":
                calls[-1] = (calls[-1][0], calls[-1][1] + piece)
        return content, calls
