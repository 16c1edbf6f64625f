"""Who multiplies on CUDA: our Triton kernel or the vendor's library (cuBLAS, through torch).

`CHOICES` is a table of measurements, most specific row first: the first that covers a call
decides. To add one, run `benchmarks/kernels.py --op linear` on the GPU, and put one line with
the times and the commit above the general rows.

An exact row holds for every number of rows: two libraries need not round alike, so a change
between them would change a row's bits with its company. "vendor" is exact only where the
library never splits K by the number of rows. On sm_90 that takes cuBLAS without workspace
(CUBLAS_WORKSPACE_CONFIG=:16:8, CUBLASLT_WORKSPACE_SIZE=1, set before CUDA starts) and a
measurement that the bits of a row stay, next to the one of time.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch

Library = Literal["triton", "vendor"]

MOST_ROWS = 2**31 - 1
EVERY_COUNT = (1, MOST_ROWS)


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of the table; capability (major * 10 + minor) or dtype None: every one.

    `rows` is the least and the greatest number of rows. `measured` says with what result, where
    and at which commit.

    Raises:
        ValueError: an exact row that does not hold for every number of rows.
    """

    exact: bool
    capability: int | None
    dtype: torch.dtype | None
    rows: tuple[int, int]
    library: Library
    measured: str

    def __post_init__(self) -> None:
        if self.exact and self.rows != EVERY_COUNT:
            raise ValueError(f"an exact choice must cover rows {EVERY_COUNT}, got {self.rows}")

    def covers(self, exact: bool, capability: int, dtype: torch.dtype, rows: int) -> bool:
        return (
            self.exact == exact
            and self.capability in (None, capability)
            and self.dtype in (None, dtype)
            and self.rows[0] <= rows <= self.rows[1]
        )


CHOICES = (
    Choice(True, None, None, EVERY_COUNT, "triton", "not measured: exact by construction"),
    Choice(False, None, None, EVERY_COUNT, "vendor", "not measured: the library's own choice"),
)


def library_for(
    exact: bool,
    capability: int,
    dtype: torch.dtype,
    rows: int,
    choices: tuple[Choice, ...] = CHOICES,
) -> Library:
    """The library of the first row that covers such a call; no rows count as one."""
    rows = max(rows, 1)
    return next(c.library for c in choices if c.covers(exact, capability, dtype, rows))


@functools.cache
def capability_of(device: torch.device) -> int:
    """Compute capability * 10 of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
