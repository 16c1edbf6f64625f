"""The feed-forward part of a transformer block."""

import torch

from quire.kernels.activations import activation, gated_activation
from quire.kernels.swish_glu import swish_glu
from quire.pipelines.nn.linear import StackedLinear


class MLP:
    """down(activation(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202), gate and up in one
    matrix; not gated: down(activation(up(x)))."""

    def __init__(self, up: StackedLinear, down: StackedLinear, activation_function: str) -> None:
        self.up = up
        self.down = down
        self.activation_function = activation_function
        self.is_gated = len(up.out_dims) == 2

    def __call__(self, x_TC: torch.Tensor) -> torch.Tensor:
        return self.down(self._activate(self.up(x_TC)))

    def _activate(self, x_TF: torch.Tensor) -> torch.Tensor:
        if not self.is_gated:
            return activation(x_TF, self.activation_function)
        if self.activation_function == "silu":
            return swish_glu(x_TF)
        return gated_activation(x_TF, self.activation_function)
