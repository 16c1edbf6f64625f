"""Dense layer on a CPU by the compiled kernel (kernels/native/linear*): exact for all rows."""

import struct

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.native import InstructionSet, Library
from quire.kernels.native.row_ops import raise_for

WEIGHTS = struct.Struct("@3Q5q")
"""The fields of LinearWeights (kernels/native/linear.h)."""
TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 3}
CPU = torch.device("cpu")


class NativeLinear:
    """y = x W^T + b with weights laid out for the compiled kernel; it keeps no other copy of them.

    Sums are in float32 and rounded once. The bits of a row depend neither on the other rows nor
    on the number of threads, which is torch's at each call.

    Args:
        weight_NK: [N, K], bfloat16 or float32; with `scale_N` int8 from -127 to 127.
        bias_N: [N] in the dtype of x, or None.
        native: the compiled library.
        scale_N: [N] float32, what the rows of int8 weights are multiplied by, else None.
        dtype: of x and the result, bfloat16 or float32: that of the weights unless these are int8.
        instruction_set: None: the best of this machine.

    Raises:
        ValueError: a shape, dtype or device outside the above, or instructions not of this machine.
    """

    def __init__(
        self,
        weight_NK: torch.Tensor,
        bias_N: torch.Tensor | None,
        *,
        native: Library,
        scale_N: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        instruction_set: InstructionSet | None = None,
    ) -> None:
        self.dtype = weight_NK.dtype if dtype is None else dtype
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"x must be of float32 or bfloat16, got {self.dtype}")
        weight_NK = weight_NK.contiguous()
        stored = self.dtype if scale_N is None else torch.int8
        check_tensor("weight_NK", weight_NK, ("N", "K"), stored, device=CPU)
        self.out_features, self.in_features = weight_NK.shape
        if bias_N is not None:
            bias_N = bias_N.contiguous()
            check_tensor("bias_N", bias_N, (self.out_features,), self.dtype, device=CPU)
        if scale_N is not None:
            scale_N = scale_N.contiguous()
            check_tensor("scale_N", scale_N, (self.out_features,), torch.float32, device=CPU)
            if weight_NK.numel() and weight_NK.amin() < -127:
                raise ValueError("weight_NK must be from -127 to 127, got -128")
        self._run = native.linear
        described = (
            *(0 if tensor is None else tensor.data_ptr() for tensor in (bias_N, scale_N)),
            *(self.out_features, self.in_features),
            *(TYPE_CODES[self.dtype], TYPE_CODES[stored]),
            native.linear_instruction_set if instruction_set is None else instruction_set,
        )
        size = native.linear_bytes(WEIGHTS.pack(0, *described))
        if size == 0:
            raise ValueError(f"no compiled linear layer of {list(weight_NK.shape)}, {described}")
        packed = torch.empty(size, dtype=torch.uint8)
        self._weights = WEIGHTS.pack(packed.data_ptr(), *described)
        self._kept = packed, bias_N, scale_N
        native.linear_pack(self._weights, weight_NK.data_ptr(), torch.get_num_threads())

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, K] to [T, N].

        Raises:
            ValueError: another number of columns, another dtype, or not on the CPU.
            MemoryError: no room for a copy of x.
        """
        x_TK = x_TK.contiguous()
        check_tensor("x_TK", x_TK, ("T", self.in_features), self.dtype, device=CPU)
        rows = x_TK.shape[0]
        y_TN = torch.empty((rows, self.out_features), dtype=self.dtype)
        threads = torch.get_num_threads()
        status = self._run(self._weights, x_TK.data_ptr(), y_TN.data_ptr(), rows, threads)
        if status:
            raise_for(status)
        return y_TN
