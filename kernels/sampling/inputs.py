"""What sampling is told about each row."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """One value per row, on the host.

    `temperature` float32, 0 is greedy; `top_k` int32, below 1 is off; `top_p` float32, 1 is off;
    `min_p` float32, 0 is off; `seed` int64, `choice` and `position` int32: key of the noise, the
    position being the absolute one of the token to sample.
    """

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    seed: NDArray[np.int64]
    choice: NDArray[np.int32]
    position: NDArray[np.int32]

    def take(self, rows: NDArray[np.int64]) -> "SamplingInputs":
        """The inputs of some rows."""
        return SamplingInputs(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.seed[rows],
            self.choice[rows],
            self.position[rows],
        )
