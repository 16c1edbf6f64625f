"""The worker's side of structured output: compiled grammars, and a context's place in one."""

import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.grammar import Grammar
from quire.pipelines.structured.vocabulary import tokenizer_info
from quire.pipelines.tokenizer import TextTokenizer

FIRST_SECONDS = 1.0
SECONDS_PER_TOKEN = 0.02
"""CPU time that a matcher may take from the steps it shares. A usual one takes a thousandth."""
MAX_LOADED_BYTES = 64 * 1024**2
"""Of the grammars kept for contexts to come, as they were sent; in memory they are several times
as large."""


class GrammarMatcher:
    """A `TokenMatcher` of xgrammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self.vocab_size = vocab_size
        self._allowed_seconds = FIRST_SECONDS

    @property
    def is_too_slow(self) -> bool:
        """Whether the grammar is so ambiguous that every token takes longer than a step should."""
        return self._allowed_seconds < 0

    def fill(self, bitmask_RW: torch.Tensor, row: int) -> bool:
        """Set the bits of the tokens that can follow; False where all of them can."""
        start = time.thread_time()
        is_needed: bool = self._matcher.fill_next_token_bitmask(bitmask_RW, row)
        self._allowed_seconds += SECONDS_PER_TOKEN - (time.thread_time() - start)
        return is_needed

    def accept(self, token: int) -> None:
        """Go on past a generated token.

        Raises:
            ValueError: the grammar does not allow it.
        """
        start = time.thread_time()
        is_accepted = self._matcher.accept_token(token)
        self._allowed_seconds -= time.thread_time() - start
        if not is_accepted:
            raise ValueError(f"token {token} does not follow in the grammar")


class GrammarMatchers:
    """Makes the matchers of one model's contexts."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._vocab_size = spec.vocab_size
        self._loaded: OrderedDict[str, tuple[Future[Any], int]] = OrderedDict()
        self._loaded_bytes = 0
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load-grammars")
        self._info: Any = None

    def prepare(self) -> None:
        """Load xgrammar in the background: it takes a second, in which others generate."""
        self._loader.submit(self._tokenizer_info)

    def load(self, grammar: Grammar) -> Future[Any]:
        """Read a compiled grammar in the background: a large one takes as long as many steps."""
        if grammar.digest not in self._loaded:
            loading = self._loader.submit(self._deserialized, grammar)
            self._loaded[grammar.digest] = loading, len(grammar.data)
            self._loaded_bytes += len(grammar.data)
        self._loaded.move_to_end(grammar.digest)
        loading, _ = self._loaded[grammar.digest]
        while self._loaded_bytes > MAX_LOADED_BYTES and len(self._loaded) > 1:
            _, (_, size) = self._loaded.popitem(last=False)
            self._loaded_bytes -= size
        return loading

    def attach(self, context: TextContext, loaded: Future[Any]) -> None:
        """Give `context` the matcher of the grammar that `load` gave, past its generated tokens.

        Raises:
            ValueError: what was loaded is no grammar of this model, or the tokens do not follow it.
        """
        import xgrammar

        matcher = GrammarMatcher(xgrammar.GrammarMatcher(loaded.result()), self._vocab_size)
        for token in context.tokens.generated.tolist():
            matcher.accept(token)
            if matcher.is_too_slow:
                break
        context.matcher = matcher

    def _deserialized(self, grammar: Grammar) -> Any:
        import xgrammar

        try:
            return xgrammar.CompiledGrammar.deserialize_json(grammar.data, self._tokenizer_info())
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def _tokenizer_info(self) -> Any:
        """Called by the loader's only thread."""
        if self._info is None:
            tokenizer = TextTokenizer.from_folder(self._folder)
            ends = self._spec.end_token_ids(tokenizer.eos_token_id)
            self._info = tokenizer_info(tokenizer, self._vocab_size, ends)
        return self._info
