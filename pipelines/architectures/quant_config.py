"""Which encoding each linear layer of a checkpoint has: config.json's `quantization_config`. No torch."""

from dataclasses import dataclass

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import DENSE, Encoding


@dataclass(frozen=True)
class QuantConfig:
    """`encoding` for every linear layer, except those that `skipped` names.

    `skipped` holds module names as checkpoints have them; one also covers the modules inside it,
    and an entry without a dot any module that ends so (lm_head).
    """

    encoding: Encoding = DENSE
    skipped: tuple[str, ...] = ()

    def encoding_of(self, name: str) -> Encoding:
        """The encoding of the linear layer that checkpoints call `name`."""
        return DENSE if any(_covers(entry, name) for entry in self.skipped) else self.encoding


UNQUANTIZED = QuantConfig()


def _covers(entry: str, name: str) -> bool:
    inside = name == entry or name.startswith(f"{entry}.")
    return inside or ("." not in entry and entry in name.split("."))


def read_quant_config(config: ConfigFile) -> QuantConfig:
    """Read `quantization_config`.

    Raises:
        ModelError: a method that is not supported.
    """
    if config.has("quantization_config"):
        raise config.wrong("quantization_config", "no quantization")
    return UNQUANTIZED
