"""4-bit weights in groups: GPTQ, AWQ and compressed-tensors' `pack-quantized`."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from quire.kernels.gptq_awq import (
    dequantize_awq,
    dequantize_gptq,
    matmul_awq,
    matmul_gptq,
    sort_gptq_groups,
)
from quire.kernels.linear.cpu_groups import awq_matrix, compiled, gptq_matrix
from quire.kernels.linear.cpu_native import StoredMatrix, native_for
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.gptq_awq import (
    AWQEncoding,
    GPTQEncoding,
    PackQuantizedEncoding,
)
from quire.pipelines.nn.linear_weight import Apply, PackedWeight, finite_scale
from quire.pipelines.nn.quantized.borders import check_borders, select_units

_PER_WORD = 8


@dataclass(frozen=True)
class Int4Tensors:
    """The tensors of `kernels.gptq_awq`, N along dimension 1 of each, and what they mean."""

    qweight: torch.Tensor
    qzeros: torch.Tensor | None
    scales: torch.Tensor
    group_size: int
    zero_offset: int = 1
    perm_idx: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Int4Tensors":
        return replace(
            self,
            qweight=self.qweight.to(device),
            qzeros=None if self.qzeros is None else self.qzeros.to(device),
            scales=self.scales.to(device),
            perm_idx=None if self.perm_idx is None else self.perm_idx.to(device),
        )


class _GroupedWeight(PackedWeight):
    """`rows_per_word` numbers of K and `columns_per_word` of N in a word of qweight."""

    rows_per_word: int
    columns_per_word: int

    def __init__(self, stored: Int4Tensors, dtype: torch.dtype) -> None:
        super().__init__(stored.qweight, dtype)
        self.in_dim = stored.qweight.shape[0] * self.rows_per_word
        self.out_dim = stored.qweight.shape[1] * self.columns_per_word
        self.weight_scale = stored.scales
        self._stored = stored

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        first = parts[0]._stored
        stored = [part._stored for part in parts]
        if not all(_alike(first, other) for other in stored):
            return None
        zeros = [one.qzeros for one in stored if one.qzeros is not None]
        stack = replace(
            first,
            qweight=torch.cat([one.qweight for one in stored], 1),
            qzeros=torch.cat(zeros, 1) if zeros else None,
            scales=torch.cat([one.scales for one in stored], 1),
        )
        return cls(stack, parts[0]._dtype)

    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        stored = self._stored
        for part in rows:
            check_borders("rows", part, self.out_dim, _PER_WORD)
        has_all_columns = columns == slice(0, self.in_dim)
        if stored.perm_idx is not None and not has_all_columns:
            raise ValueError("columns in the order of activations cannot be cut")
        is_one_group = stored.group_size == -1
        check_borders(
            "columns", columns, self.in_dim, _PER_WORD if is_one_group else stored.group_size
        )
        whole_group = slice(0, self.in_dim) if is_one_group else columns
        group_size = self.in_dim if is_one_group else stored.group_size

        def cut(tensor: torch.Tensor, per_column: int) -> torch.Tensor:
            groups = select_units(tensor, [whole_group], group_size, 0)
            return select_units(groups, rows, per_column, 1)

        words = select_units(stored.qweight, [columns], self.rows_per_word, 0)
        selected = replace(
            stored,
            qweight=select_units(words, rows, self.columns_per_word, 1),
            qzeros=None if stored.qzeros is None else cut(stored.qzeros, _PER_WORD),
            scales=cut(stored.scales, 1),
        )
        return type(self)(selected, self._dtype)

    def is_packed_on(self, device: torch.device) -> bool:
        return super().is_packed_on(device) or native_for(device, self._dtype) is not None

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        if (native := native_for(device, self._dtype)) is not None:
            matrix, order = type(self).matrix(self._stored), self._stored.perm_idx
            return compiled(matrix, bias_N, self._dtype, native, order)
        stored = self._stored.to(device)
        multiply = type(self).multiply
        return lambda x_TK: multiply(x_TK.contiguous(), stored, bias_N)

    @staticmethod
    @abstractmethod
    def matrix(stored: Int4Tensors) -> StoredMatrix:
        """As the compiled layers of a CPU take it."""

    @staticmethod
    @abstractmethod
    def multiply(
        x_TK: torch.Tensor, stored: Int4Tensors, bias_N: torch.Tensor | None
    ) -> torch.Tensor:
        """x W^T + b with the stored weights."""


def _alike(left: Int4Tensors, right: Int4Tensors) -> bool:
    if (left.qzeros is None) != (right.qzeros is None):
        return False
    if left.perm_idx is None or right.perm_idx is None:
        return left.perm_idx is right.perm_idx
    return torch.equal(left.perm_idx, right.perm_idx)


class GPTQWeight(_GroupedWeight):
    """Words along K; perhaps with rows in the order of activations."""

    rows_per_word = _PER_WORD
    columns_per_word = 1

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, GPTQEncoding)
        finite_scale("scales", tensors["scales"])
        stored = Int4Tensors(
            tensors["qweight"],
            tensors["qzeros"],
            tensors["scales"],
            encoding.group_size,
            encoding.zero_offset,
        )
        return cls(_sorted(stored, tensors.get("g_idx")), dtype)

    def dense(self) -> torch.Tensor:
        stored = self._stored
        return dequantize_gptq(
            stored.qweight,
            stored.qzeros,
            stored.scales,
            group_size=stored.group_size,
            perm_idx=stored.perm_idx,
            zero_offset=stored.zero_offset,
            out_dtype=self._dtype,
        )

    @staticmethod
    def matrix(stored: Int4Tensors) -> StoredMatrix:
        return gptq_matrix(stored.qweight, stored.qzeros, stored.scales, stored.zero_offset)

    @staticmethod
    def multiply(
        x_TK: torch.Tensor, stored: Int4Tensors, bias_N: torch.Tensor | None
    ) -> torch.Tensor:
        return matmul_gptq(
            x_TK,
            stored.qweight,
            stored.qzeros,
            stored.scales,
            group_size=stored.group_size,
            perm_idx=stored.perm_idx,
            zero_offset=stored.zero_offset,
            bias_N=bias_N,
        )


def _sorted(stored: Int4Tensors, g_idx: torch.Tensor | None) -> Int4Tensors:
    """With rows in the order of groups; ValueError where these are not what `scales` has."""
    if g_idx is None:
        return stored
    in_dim, groups = stored.qweight.shape[0] * _PER_WORD, stored.scales.shape[0]
    size = in_dim // groups
    if torch.equal(g_idx, torch.arange(in_dim, dtype=torch.int32) // size):
        return stored
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        raise ValueError(f"g_idx: expected 0 to {groups - 1}, found another group")
    if (sizes := torch.bincount(g_idx, minlength=groups)).ne(size).any():
        raise ValueError(f"g_idx: expected {size} rows in each group, found {sizes.tolist()}")
    qweight, perm_idx = sort_gptq_groups(stored.qweight, g_idx)
    return replace(stored, qweight=qweight, perm_idx=perm_idx)


class PackQuantizedWeight(GPTQWeight):
    """compressed-tensors' words, which are GPTQ's with rows and columns exchanged."""

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, PackQuantizedEncoding)
        packed, zeros = tensors["weight_packed"], tensors.get("weight_zero_point")
        shape = (packed.shape[0], packed.shape[1] * _PER_WORD)
        if tuple(tensors["weight_shape"].tolist()) != shape:
            raise ValueError(
                f"weight_shape: expected {list(shape)}, found {tensors['weight_shape'].tolist()}"
            )
        finite_scale("weight_scale", tensors["weight_scale"])
        stored = Int4Tensors(
            packed.t().contiguous(),
            None if zeros is None else zeros.t().contiguous(),
            tensors["weight_scale"].t().contiguous(),
            encoding.group_size,
            zero_offset=0,
        )
        return cls(_sorted(stored, tensors.get("weight_g_idx")), dtype)


class AWQWeight(_GroupedWeight):
    """Words along N."""

    rows_per_word = 1
    columns_per_word = _PER_WORD

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        assert isinstance(encoding, AWQEncoding)
        finite_scale("scales", tensors["scales"])
        stored = Int4Tensors(
            tensors["qweight"], tensors["qzeros"], tensors["scales"], encoding.group_size
        )
        return cls(stored, dtype)

    def dense(self) -> torch.Tensor:
        stored = self._stored
        assert stored.qzeros is not None
        return dequantize_awq(
            stored.qweight,
            stored.qzeros,
            stored.scales,
            group_size=stored.group_size,
            out_dtype=self._dtype,
        )

    @staticmethod
    def matrix(stored: Int4Tensors) -> StoredMatrix:
        assert stored.qzeros is not None
        return awq_matrix(stored.qweight, stored.qzeros, stored.scales)

    @staticmethod
    def multiply(
        x_TK: torch.Tensor, stored: Int4Tensors, bias_N: torch.Tensor | None
    ) -> torch.Tensor:
        assert stored.qzeros is not None
        return matmul_awq(
            x_TK,
            stored.qweight,
            stored.qzeros,
            stored.scales,
            group_size=stored.group_size,
            bias_N=bias_N,
        )
