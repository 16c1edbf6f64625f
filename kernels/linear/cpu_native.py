"""Dense layer on a CPU by the compiled kernel (kernels/native/linear*): exact for all rows."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.native import InstructionSet, Library, library
from quire.kernels.native.row_ops import BAD_BATCH, raise_for

WEIGHTS = struct.Struct("@4Q7q")
"""The fields of LinearWeights (kernels/native/linear.h)."""
INT8, INT4 = 3, 4
TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: INT8}
CPU = torch.device("cpu")


def native_for(device: torch.device, dtype: torch.dtype) -> Library | None:
    """The compiled library, where it computes linear layers on `device` in `dtype`."""
    is_served = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return library() if is_served else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """A matrix [N, K] as the library packs it: contiguous tensors on the CPU.

    `weight` are its rows, or of plain numbers the first of them: those of `more_rows`, [n, K] each,
    follow. Their numbers are of the type `weight_type`. Those of whole numbers have scales, float32
    [groups, N], K / groups of neighbouring features each; `offsets`, of the same shape, are added to
    what number times scale gives. More than one group are of a multiple of 16 features.
    """

    weight: torch.Tensor
    weight_type: int
    out_features: int
    in_features: int
    scales: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    more_rows: Iterable[torch.Tensor] = ()

    @property
    def group_size(self) -> int:
        return self.in_features // (1 if self.scales is None else len(self.scales))

    @property
    def is_grouped(self) -> bool:
        """Whether scales and offsets are packed with the numbers (`is_grouped` of linear.h)."""
        is_int8_in_groups = self.weight_type == INT8 and (
            self.group_size != self.in_features or self.offsets is not None
        )
        return self.weight_type == INT4 or is_int8_in_groups


class CompiledLinear:
    """y = x W^T + b with weights laid out for the compiled kernel; it keeps no other copy of them.

    Sums are in float32 and rounded once. The bits of a row depend neither on the other rows nor
    on the number of threads, which is torch's at each call.

    Args:
        matrix: W.
        bias_N: [N] in the dtype of x, or None.
        dtype: of x and the result, bfloat16 or float32.
        native: the compiled library.
        activation_type: the code of the type that x is multiplied in; None: that of `dtype`.
        instruction_set: None: the best of this machine.

    `weights` is the LinearWeights that the library takes; they live as long as this object.

    Raises:
        ValueError: a shape, dtype or device outside the above, or instructions not of this machine.
    """

    def __init__(
        self,
        matrix: StoredMatrix,
        bias_N: torch.Tensor | None,
        *,
        dtype: torch.dtype,
        native: Library,
        activation_type: int | None = None,
        instruction_set: InstructionSet | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"x must be of float32 or bfloat16, got {dtype}")
        self.dtype = dtype
        self.out_features, self.in_features = matrix.out_features, matrix.in_features
        if bias_N is not None:
            bias_N = bias_N.contiguous()
            check_tensor("bias_N", bias_N, (self.out_features,), dtype, device=CPU)
        self._run = native.linear
        code = TYPE_CODES[dtype]
        sizes = (
            *(self.out_features, self.in_features, code, matrix.weight_type),
            *(code if activation_type is None else activation_type, matrix.group_size),
            native.linear_instruction_set if instruction_set is None else instruction_set,
        )

        def described(*tensors: torch.Tensor | None) -> bytes:
            return WEIGHTS.pack(*(0 if one is None else one.data_ptr() for one in tensors), *sizes)

        size = native.linear_bytes(described(None, bias_N, matrix.scales, matrix.offsets))
        if size == 0:
            raise ValueError(
                f"no compiled linear layer of [{self.out_features}, {self.in_features}], {sizes}"
            )
        packed = torch.empty(size, dtype=torch.uint8)
        self._kept = packed, bias_N, matrix.scales, matrix.offsets
        self.weights = described(*self._kept)
        self._pack(matrix, native)
        if matrix.is_grouped:
            offsets = None if matrix.offsets is None else packed
            self._kept = packed, bias_N, packed, offsets
            self.weights = described(*self._kept)

    def _pack(self, matrix: StoredMatrix, native: Library) -> None:
        weight = matrix.weight
        if not matrix.more_rows:
            native.linear_pack(self.weights, weight.data_ptr(), torch.get_num_threads())
            return
        first = 0
        for part in chain((weight,), matrix.more_rows):
            rows, threads = part.contiguous(), torch.get_num_threads()
            check_tensor("more_rows", rows, ("n", weight.shape[1]), weight.dtype, device=CPU)
            if native.linear_pack_rows(self.weights, rows.data_ptr(), first, len(rows), threads):
                raise ValueError(f"expected {self.out_features} rows, got more")
            first += len(rows)
        if first != self.out_features:
            raise ValueError(f"expected {self.out_features} rows, got {first}")

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
        status = self._run(self.weights, x_TK.data_ptr(), y_TN.data_ptr(), rows, threads)
        if status:
            raise_for(status)
        return y_TN


class NativeLinear(CompiledLinear):
    """A `CompiledLinear` of plain numbers, or of int8 with a scale per row.

    Args:
        weight_NK: [N, K], bfloat16 or float32; with `scale_N` int8.
        bias_N, native, instruction_set: as of `CompiledLinear`.
        scale_N: [N] float32, what the rows of int8 weights are multiplied by, else None.
        dtype: that of the weights unless these are int8.
        more_rows: [n, K] each, of W after those of `weight_NK`; plain numbers only. Each is needed no
            longer when the next is asked for.
        out_features: N; None where `more_rows` is a sequence, of which it is counted.

    Raises:
        ValueError: as of `CompiledLinear`.
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
        more_rows: Iterable[torch.Tensor] = (),
        out_features: int | None = None,
    ) -> None:
        dtype = weight_NK.dtype if dtype is None else dtype
        matrix = matrix_of(weight_NK, scale_N, dtype)
        if more_rows:
            if out_features is None:
                out_features = len(weight_NK) + sum(len(rows) for rows in more_rows)
            matrix = replace(matrix, out_features=out_features, more_rows=more_rows)
        self._rows = native.linear_rows
        self._is_plain = scale_N is None
        super().__init__(
            matrix,
            bias_N,
            dtype=dtype,
            native=native,
            instruction_set=instruction_set,
        )

    def rows(self, numbers_T: torch.Tensor) -> torch.Tensor:
        """The rows of W of these numbers, int32 [T]: [T, K].

        Raises:
            IndexError: there is no such row.
            ValueError: the weights are not plain numbers, or `numbers_T` is not as above.
        """
        if not self._is_plain:
            raise ValueError("rows of int8 weights are not given")
        numbers_T = numbers_T.contiguous()
        check_tensor("numbers_T", numbers_T, ("T",), torch.int32, device=CPU)
        count = numbers_T.shape[0]
        out_TK = torch.empty((count, self.in_features), dtype=self.dtype)
        status = self._rows(
            self.weights, numbers_T.data_ptr(), count, out_TK.data_ptr(), torch.get_num_threads()
        )
        if status == BAD_BATCH:
            raise IndexError(f"rows are 0 to {self.out_features - 1}, asked for {numbers_T}")
        if status:
            raise_for(status)
        return out_TK


def matrix_of(
    weight_NK: torch.Tensor, scale_N: torch.Tensor | None, dtype: torch.dtype
) -> StoredMatrix:
    """Of `weight_NK` in `dtype`, or with `scale_N` [N] float32 int8.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    if scale_N is not None:
        return int8_matrix(weight_NK, scale_N)
    return _stored(weight_NK, dtype)


def int8_matrix(weight_NK: torch.Tensor, scale_N: torch.Tensor) -> StoredMatrix:
    """Of int8 with a scale per row.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("scale_N", scale_N, (len(weight_NK),), torch.float32, device=CPU)
    return replace(_stored(weight_NK, torch.int8), scales=scale_N.contiguous().unsqueeze(0))


def _stored(weight_NK: torch.Tensor, dtype: torch.dtype) -> StoredMatrix:
    weight_NK = weight_NK.contiguous()
    check_tensor("weight_NK", weight_NK, ("N", "K"), dtype, device=CPU)
    return StoredMatrix(
        weight=weight_NK,
        weight_type=TYPE_CODES.get(dtype, -1),
        out_features=weight_NK.shape[0],
        in_features=weight_NK.shape[1],
    )
