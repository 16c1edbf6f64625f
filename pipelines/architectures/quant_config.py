"""`QuantConfig`: which encoding each linear layer of a checkpoint has. No torch.

`quantized/` has the encodings and reads them from config.json.
"""

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

from quire.pipelines.architectures.encodings import DENSE, FLOAT_DTYPES, Encoding

REGEX_PREFIX = "re:"
"""What compressed-tensors puts before a regular expression in a list of names."""


@dataclass(frozen=True)
class QuantConfig:
    """`encoding` for every linear layer, except those that `skipped` names.

    An entry of `skipped` is a module's name as checkpoints have it, or some of its parts that
    follow each other (lm_head, mlp.gate); it also covers the modules inside. It may have
    wildcards, or be a regular expression after `re:` that the name begins with.
    Lists may have the first of a pair of `renamed` prefixes where the module has the second.
    With `only` just the layers are quantized whose names end with one of these.
    Tensors whose names end with one of `ignored_suffixes` are left unread. `notes` are sentences
    for the log of the start.
    """

    encoding: Encoding = DENSE
    skipped: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    only: tuple[str, ...] = ()
    ignored_suffixes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def embedding_dtypes(self) -> tuple[str, ...]:
        """What the embedding may be stored as; it is computed with as plain numbers."""
        return FLOAT_DTYPES

    def encoding_of(self, name: str) -> Encoding:
        """The encoding of the linear layer that checkpoints call `name`."""
        return DENSE if self.skips(name) else self.encoding

    def encoding_over(self, name: str, own: Encoding) -> Encoding:
        """The same of a layer to which the architecture itself gives the encoding `own`."""
        return own if self.skips(name) else self.encoding.over(own)

    def skips(self, name: str) -> bool:
        """Whether `skipped` covers the module, or `only` does not have it."""
        if self.only and not f".{name}".endswith(tuple(f".{entry}" for entry in self.only)):
            return True
        spellings = (
            name,
            *(
                f"{old}{name.removeprefix(new)}"
                for old, new in self.renamed
                if name.startswith(new)
            ),
        )
        return any(map(self._covers, spellings))

    def _covers(self, name: str) -> bool:
        parts = name.split(".")
        runs = (
            ".".join(parts[begin:end])
            for begin in range(len(parts))
            for end in range(begin + 1, len(parts) + 1)
        )
        is_named = not self._names.isdisjoint(runs)
        return is_named or any(pattern.match(name) for pattern in self._patterns)

    @cached_property
    def _names(self) -> frozenset[str]:
        """Entries that are no patterns. Lists have hundreds, and models tens of thousands of names."""
        return frozenset(entry.strip(".") for entry in self.skipped if not _is_pattern(entry))

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        regexes = [entry for entry in self.skipped if entry.startswith(REGEX_PREFIX)]
        globs = [entry for entry in self.skipped if _is_pattern(entry) and entry not in regexes]
        translated = [translate(part) for entry in globs for part in (entry, f"{entry}.*")]
        return tuple(
            re.compile(pattern)
            for pattern in (
                *(entry.removeprefix(REGEX_PREFIX) for entry in regexes),
                *(("|".join(translated),) if translated else ()),
            )
        )


UNQUANTIZED = QuantConfig()


def _is_pattern(entry: str) -> bool:
    return entry.startswith(REGEX_PREFIX) or "*" in entry
