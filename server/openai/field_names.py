"""Errors about a request that was translated, in the names that its client gave the fields."""

import contextlib
import re
from collections.abc import Iterator, Mapping

from quire.server.errors import InvalidRequest


@contextlib.contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """What is raised inside speaks of fields as `names` says; its keys are patterns."""
    try:
        yield
    except InvalidRequest as error:
        error.message = renamed(error.message, names)
        error.param = None if error.param is None else renamed(error.param, names)
        raise


def renamed(text: str, names: Mapping[str, str]) -> str:
    """`text` with the fields called as `names` says."""
    for pattern, name in names.items():
        text = re.sub(rf"(?<![\w.]){pattern}(?!\w)", name, text)
    return text
