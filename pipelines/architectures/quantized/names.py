"""Lists of module names in a `quantization_config`, and keys that are not supported. No torch."""

import re
from collections.abc import Iterable

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.quant_config import REGEX_PREFIX


def names_in(section: ConfigFile, key: str) -> tuple[str, ...]:
    """The list under `key` as entries of `QuantConfig.skipped`; none where it is missing.

    Raises:
        ModelError: it is not a list of strings, or has a wrong regular expression.
    """
    return checked(section, key, section.strings(key) if section.has(key) else ())


def checked(section: ConfigFile, key: str, entries: Iterable[str]) -> tuple[str, ...]:
    """`entries`, which `key` has, with regular expressions that compile."""
    found = tuple(entries)
    for entry in found:
        if entry.startswith(REGEX_PREFIX):
            try:
                re.compile(entry.removeprefix(REGEX_PREFIX))
            except re.error:
                raise section.wrong(key, "valid regular expressions") from None
    return found


def refuse_keys(section: ConfigFile, keys: tuple[str, ...]) -> None:
    """Raise ModelError where one of `keys` says anything: they change what is computed."""
    for key in keys:
        if section.has(key) and not section.is_empty(key):
            raise section.wrong(key, "nothing: it is not supported")
