"""GGUF block layouts: how many weights and bytes a block has.

As in ggml (https://github.com/ggml-org/ggml, `src/ggml-common.h`: block_q4_0 ... block_iq4_xs).
"""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class BlockParameters:
    """`elements_per_block` weights of one row are stored in `block_size` bytes."""

    elements_per_block: int
    block_size: int


ENCODINGS = MappingProxyType(
    {
        "Q4_0": BlockParameters(32, 18),
        "Q4_1": BlockParameters(32, 20),
        "Q5_0": BlockParameters(32, 22),
        "Q5_1": BlockParameters(32, 24),
        "Q8_0": BlockParameters(32, 34),
        "IQ4_NL": BlockParameters(32, 18),
        "Q2_K": BlockParameters(256, 84),
        "Q3_K": BlockParameters(256, 110),
        "Q4_K": BlockParameters(256, 144),
        "Q5_K": BlockParameters(256, 176),
        "Q6_K": BlockParameters(256, 210),
        "IQ4_XS": BlockParameters(256, 136),
    }
)


def block_parameters(encoding: str, name: str = "encoding") -> BlockParameters:
    """The layout of `encoding`; `name` is the argument it came in.

    Raises:
        ValueError: an encoding that is not known.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"{name} must be one of {', '.join(ENCODINGS)}, got {encoding!r}")
    return ENCODINGS[encoding]


def in_features(row_bytes: int, encoding: str) -> int:
    """How many weights a row of `row_bytes` holds."""
    layout = block_parameters(encoding)
    return row_bytes // layout.block_size * layout.elements_per_block
