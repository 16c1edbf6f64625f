"""int8 weights with a scale per row, times activations in int8 with a scale per token."""

import torch

from quire.kernels.w8a8 import matmul_w8a8
from quire.kernels.w8a8.prepared import prepare_w8a8
from quire.pipelines.nn.linear_weight import Apply
from quire.pipelines.nn.quantized.int8 import Int8Weight


class W8A8Weight(Int8Weight):
    """As `Int8Weight`; every device computes with whole numbers, and so to the same bits."""

    def is_packed_on(self, device: torch.device) -> bool:
        return True

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        if device.type == "cpu":
            return prepare_w8a8(self._weight, self.weight_scale, bias_N, self._dtype)
        weight, scale = self._weight.to(device), self.weight_scale.to(device)
        return lambda x_TK: matmul_w8a8(x_TK.contiguous(), weight, scale, bias_N)
