"""The worker's side of structured output: compiled grammars, and a context's place in one."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from quire.kernels.logits_processing import apply_token_bitmask
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.grammar import Grammar
from quire.pipelines.structured.vocabulary import tokenizer_info
from quire.pipelines.tokenizer import TextTokenizer

MAX_KEPT = 64
"""Compiled grammars kept for contexts to come."""


class GrammarMatcher:
    """A `TokenMatcher` of xgrammar."""

    def __init__(self, matcher: Any, bitmask: torch.Tensor) -> None:
        self._matcher = matcher
        self._bitmask = bitmask

    def mask(self, logits_V: torch.Tensor) -> None:
        """Set the fp32 logits of the tokens that cannot follow to -inf."""
        if self._matcher.fill_next_token_bitmask(self._bitmask, 0):
            apply_token_bitmask(logits_V[None], self._bitmask.to(logits_V.device))

    def accept(self, token: int) -> None:
        """Go on past a generated token.

        Raises:
            ValueError: the grammar does not allow it.
        """
        if not self._matcher.accept_token(token):
            raise ValueError(f"token {token} does not follow in the grammar")


class GrammarMatchers:
    """Makes the matchers of one model's contexts."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._vocab_size = spec.vocab_size
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._info: Any = None

    def prepare(self) -> None:
        """Load xgrammar in the background: it takes a second, in which others generate."""
        threading.Thread(target=self._tokenizer_info, name="load-xgrammar", daemon=True).start()

    def attach(self, context: TextContext, grammars: Iterable[Grammar]) -> None:
        """Give `context` the matcher of its grammar, past the tokens it has generated.

        Raises:
            ValueError: the grammar is not among `grammars`, or its tokens do not follow it.
        """
        found = {grammar.digest: grammar for grammar in grammars}.get(context.grammar_digest)
        if found is None:
            raise ValueError("the request came without its grammar")
        import xgrammar

        matcher = GrammarMatcher(
            xgrammar.GrammarMatcher(self._grammar(found)),
            xgrammar.allocate_token_bitmask(1, self._vocab_size),
        )
        for token in context.tokens.generated.tolist():
            matcher.accept(token)
        context.matcher = matcher

    def _grammar(self, grammar: Grammar) -> Any:
        if grammar.digest not in self._compiled:
            import xgrammar

            self._compiled[grammar.digest] = xgrammar.CompiledGrammar.deserialize_json(
                grammar.data, self._tokenizer_info()
            )
            if len(self._compiled) > MAX_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar.digest)
        return self._compiled[grammar.digest]

    def _tokenizer_info(self) -> Any:
        with self._lock:
            if self._info is None:
                tokenizer = TextTokenizer.from_folder(self._folder)
                ends = self._spec.end_token_ids(tokenizer.eos_token_id)
                self._info = tokenizer_info(tokenizer, self._vocab_size, ends)
            return self._info
