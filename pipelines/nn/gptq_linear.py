"""`GPTQLinear`: the linear layer whose weights are GPTQ's and nothing else."""

from typing import Any

import torch

from quire.pipelines.architectures.quantized.gptq_awq import GPTQEncoding
from quire.pipelines.nn.linear import Linear


class GPTQLinear(Linear):
    """A `Linear` of 4-bit groups (https://arxiv.org/abs/2210.17323); options as there.

    Raises:
        ValueError: neither `quantization_encoding` nor `quant_config` says that it is GPTQ.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        has_bias: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_dim, out_dim, dtype, device, has_bias, **options)
        if not isinstance(self.encoding, GPTQEncoding):
            raise ValueError(  # noqa: TRY004 - it is the value of an option
                f"{self.name}: expected gptq weights, found {self.encoding.name}"
            )
