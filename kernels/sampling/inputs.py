"""What sampling is told about each row, on the host and on a device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quire.kernels.checks import check_range, check_tensor


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

    def to(self, device: torch.device) -> "SamplingTensors":
        """The same on a device, in one copy."""
        rows = len(self.temperature)
        # Every part begins at a multiple of 16 bytes: Triton compiles anew for one that does not.
        padded = -(-rows // 4) * 4
        words = np.zeros((8, padded), dtype=np.int32)
        words[:2].reshape(-1).view(np.int64)[:rows] = self.seed
        words[2:5, :rows].view(np.float32)[:] = self.temperature, self.top_p, self.min_p
        words[5:, :rows] = self.top_k, self.choice, self.position
        copied = torch.from_numpy(words).to(device)
        temperature, top_p, min_p = copied[2:5].view(torch.float32)[:, :rows]
        top_k, choice, position = copied[5:, :rows]
        seed = copied[:2].reshape(-1).view(torch.int64)[:rows]
        return SamplingTensors(temperature, top_k, top_p, min_p, seed, choice, position)


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """`SamplingInputs` as tensors of a device: same names, dtypes and meaning."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    choice: torch.Tensor
    position: torch.Tensor

    def to_host(self) -> SamplingInputs:
        return SamplingInputs(
            temperature=self.temperature.cpu().numpy(),
            top_k=self.top_k.cpu().numpy(),
            top_p=self.top_p.cpu().numpy(),
            min_p=self.min_p.cpu().numpy(),
            seed=self.seed.cpu().numpy(),
            choice=self.choice.cpu().numpy(),
            position=self.position.cpu().numpy(),
        )


def row_parameters(
    logits: torch.Tensor,
    top_k: torch.Tensor | int,
    *,
    temperature: torch.Tensor | float = 1.0,
    max_k: int | None = None,
    top_p: torch.Tensor | float = 1.0,
    min_p: torch.Tensor | float = 0.0,
    seed: torch.Tensor | int = 0,
    choice: torch.Tensor | int = 0,
    position: torch.Tensor | int = 0,
) -> SamplingTensors:
    """The options of `topk_fused_sampling`, checked, as one value per row beside the logits."""
    rows, device = logits.shape[0], logits.device

    def per_row(
        name: str, value: torch.Tensor | float, dtype: torch.dtype, low: float, high: float
    ) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            check_tensor(name, value, (rows,), dtype, device=device)
            return value
        check_range(name, value, low, high)
        return torch.full((rows,), value, dtype=dtype, device=device)

    if max_k is not None:
        check_range("max_k", max_k, 1, 2**31 - 1)
        top_k = top_k.clamp(max=max_k) if isinstance(top_k, torch.Tensor) else min(top_k, max_k)
    float32, int32 = torch.float32, torch.int32
    return SamplingTensors(
        temperature=per_row("temperature", temperature, float32, 0.0, torch.finfo(float32).max),
        top_k=per_row("top_k", top_k, int32, -(2**31), 2**31 - 1),
        top_p=per_row("top_p", top_p, float32, math.ulp(0.0), 1.0),
        min_p=per_row("min_p", min_p, float32, 0.0, 1.0),
        seed=per_row("seed", seed, torch.int64, -(2**63), 2**63 - 1),
        choice=per_row("choice", choice, int32, -(2**31), 2**31 - 1),
        position=per_row("position", position, int32, -(2**31), 2**31 - 1),
    )
