"""How far our logits were from transformers' when they were last measured. No torch.

`tools/render_models.py` measures, and writes `parity.json` and docs/models.md from it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

PATHS = ("prefill", "chunked", "decode")
"""The ways a history is run: in one step, cut into chunks, its end token by token."""


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One case: a random tiny model, every position of a history of 70 tokens.

    Errors are the greatest differences of logits (bfloat16, w8a8: root mean squares) by path, None where
    the model has no such path; `bound` is what the tests allow.
    """

    architecture: str
    variant: str
    encoding: str
    prefill: float
    chunked: float | None
    decode: float | None
    bound: float


@dataclass(frozen=True, kw_only=True)
class ParityTotal:
    """All cases of one architecture in one encoding: the worst of each."""

    architecture: str
    encoding: str
    num_cases: int
    prefill: float
    chunked: float | None
    decode: float | None
    bound: float


def load_parity() -> tuple[ParityRow, ...]:
    """The rows that this version of Quire was measured with."""
    text = resources.files("quire.pipelines.architectures").joinpath("parity.json").read_text()
    return tuple(ParityRow(**row) for row in json.loads(text)["rows"])


def totals(rows: Iterable[ParityRow]) -> list[ParityTotal]:
    """By architecture and encoding, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[ParityRow]] = {}
    for row in rows:
        groups.setdefault((row.architecture, row.encoding), []).append(row)
    return [
        ParityTotal(
            architecture=architecture,
            encoding=encoding,
            num_cases=len(group),
            prefill=max(row.prefill for row in group),
            chunked=_worst(row.chunked for row in group),
            decode=_worst(row.decode for row in group),
            bound=max(row.bound for row in group),
        )
        for (architecture, encoding), group in groups.items()
    ]


def _worst(errors: Iterable[float | None]) -> float | None:
    found = [error for error in errors if error is not None]
    return max(found) if found else None


def format_error(error: float | None) -> str:
    """Two digits; a dash where there is none."""
    return "-" if error is None else f"{error:.1e}"
