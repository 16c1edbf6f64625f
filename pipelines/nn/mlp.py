"""The feed-forward part of a transformer block."""

import torch

from quire.kernels.swish_glu import swish_glu
from quire.pipelines.nn.linear import Linear


class MLP:
    """down(silu(gate(x)) * up(x)), gate and up in one matrix (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    def __call__(self, x_TC: torch.Tensor) -> torch.Tensor:
        return self.down(swish_glu(self.gate_up(x_TC)))
