"""Which weights a CPU computes with as whole numbers in groups, and what they take. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class NumberGroups:
    """Whole numbers of `bits`, `size` along K with a scale, and an offset where they have some.

    `size` -1: one group. Scales and offsets are float32, in which all products of the scales that
    a format stores are exact or rounded once.
    """

    bits: int
    size: int
    has_offsets: bool = False

    def device_bytes(self, out_dim: int, in_dim: int) -> int:
        """Of a matrix [out_dim, in_dim]."""
        groups = 1 if self.size == -1 else in_dim // self.size
        return out_dim * (in_dim * self.bits // 8 + groups * 4 * (1 + self.has_offsets))


GGUF_GROUPS: Mapping[str, NumberGroups] = MappingProxyType(
    {
        "Q4_0": NumberGroups(4, 32),
        "Q4_1": NumberGroups(4, 32, has_offsets=True),
        "Q5_0": NumberGroups(8, 32),
        "Q5_1": NumberGroups(8, 32, has_offsets=True),
        "Q8_0": NumberGroups(8, 32),
        "IQ4_NL": NumberGroups(8, 32),
        "Q2_K": NumberGroups(4, 16, has_offsets=True),
        "Q3_K": NumberGroups(4, 16),
        "Q4_K": NumberGroups(4, 32, has_offsets=True),
        "Q5_K": NumberGroups(8, 32, has_offsets=True),
        "Q6_K": NumberGroups(8, 16),
        "IQ4_XS": NumberGroups(8, 32),
    }
)
"""By the type of a GGUF file's blocks; those of 5 and 6 bits, and those on a curve, are in bytes."""
