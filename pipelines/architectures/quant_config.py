"""`QuantConfig`: which encoding each linear layer of a checkpoint has. No torch.

`quantized/` has the encodings and reads them from config.json.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quire.pipelines.architectures.encodings import DENSE, FLOAT_DTYPES, Encoding

REGEX_PREFIX = "re:"
"""What compressed-tensors puts before a regular expression in a list of names."""


@dataclass(frozen=True)
class QuantConfig:
    """`encoding` for every linear layer, except those that `skipped` names.

    An entry of `skipped` is a module's name as checkpoints have it, or some of its parts that
    follow each other (lm_head, mlp.gate); it also covers the modules inside. It may have
    wildcards, or be a regular expression after `re:` that the name begins with.
    With `only` just the layers are quantized whose names end with one of these.
    Tensors whose names end with one of `ignored_suffixes` are left unread. `notes` are sentences
    for the log of the start.
    """

    encoding: Encoding = DENSE
    skipped: tuple[str, ...] = ()
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
        return any(_covers(entry, name) for entry in self.skipped)


UNQUANTIZED = QuantConfig()


def _covers(entry: str, name: str) -> bool:
    if entry.startswith(REGEX_PREFIX):
        return re.match(entry.removeprefix(REGEX_PREFIX), name) is not None
    if "*" in entry:
        return fnmatchcase(name, entry) or fnmatchcase(name, f"{entry}.*")
    return f".{entry.strip('.')}." in f".{name}."
