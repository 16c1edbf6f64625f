"""Layers that were prepared one by one, on a CPU, each on its own rows: one compiled call for all."""

import ctypes
import struct
from collections.abc import Sequence
from typing import Protocol

import torch

from quire.kernels.checks import check_tensor
from quire.kernels.grouped_matmul_ragged.reference import gathered, groups_of
from quire.kernels.linear import PreparedLinear
from quire.kernels.linear.cpu_native import CPU, CompiledLinear
from quire.kernels.native import Library, library
from quire.kernels.native.row_ops import BAD_BATCH, raise_for

CALL = struct.Struct("@6Q8q")
"""The fields of GroupedLinearCall (kernels/native/linear.h)."""


class GroupedLayers(Protocol):
    """Layers of equal sizes. A row has the bits that its layer alone gives it."""

    def __call__(
        self,
        x_TK: torch.Tensor,
        starts: torch.Tensor,
        ids: torch.Tensor,
        order: torch.Tensor | None = None,
        top_k: int = 1,
    ) -> torch.Tensor:
        """As `grouped_matmul_ragged` with the layers' weights and biases."""
        ...

    def on_all(self, x_TLK: torch.Tensor) -> torch.Tensor:
        """Layer l on x[:, l]: [T, L, K] to [T, L, N]; only rows need be contiguous."""
        ...


def group_layers(layers: Sequence[PreparedLinear]) -> GroupedLayers:
    """One call for all where they are compiled, else a call for each.

    Raises:
        ValueError: compiled layers of different sizes or types.
    """
    native = library()
    compiled = [layer.apply for layer in layers if isinstance(layer.apply, CompiledLinear)]
    if native is None or len(compiled) < len(layers):
        return EachLayer(layers)
    return CompiledLayers(compiled, native)


class EachLayer:
    """A call for each layer that has rows."""

    def __init__(self, layers: Sequence[PreparedLinear]) -> None:
        self._layers = tuple(layers)

    def __call__(
        self,
        x_TK: torch.Tensor,
        starts: torch.Tensor,
        ids: torch.Tensor,
        order: torch.Tensor | None = None,
        top_k: int = 1,
    ) -> torch.Tensor:
        """As `GroupedLayers`."""
        x_MK = gathered(x_TK, order, top_k)
        out_MN = x_MK.new_zeros(len(x_MK), self._layers[0].out_features)
        for layer, rows in groups_of(starts, ids):
            out_MN[rows] = self._layers[layer](x_MK[rows])
        return out_MN

    def on_all(self, x_TLK: torch.Tensor) -> torch.Tensor:
        """As `GroupedLayers`."""
        rows = zip(self._layers, x_TLK.unbind(1), strict=True)
        return torch.stack([layer(x_TK.contiguous()) for layer, x_TK in rows], 1)


class CompiledLayers:
    """All in one call of the compiled library.

    Raises:
        ValueError: layers of different sizes or types.
    """

    def __init__(self, layers: Sequence[CompiledLinear], native: Library) -> None:
        first = layers[0]
        self._in_features, self._out_features = first.in_features, first.out_features
        self._dtype = first.dtype
        self._run = native.grouped_linear
        self._count = len(layers)
        self._kept = tuple(layers)
        self._weights = ctypes.create_string_buffer(b"".join(layer.weights for layer in layers))
        # Without rows it only says whether the layers are alike.
        self._call(self._empty(0), self._empty(0), (0, 0, 0), (0, 0, 1), (0, 0, 0))

    def __call__(
        self,
        x_TK: torch.Tensor,
        starts: torch.Tensor,
        ids: torch.Tensor,
        order: torch.Tensor | None = None,
        top_k: int = 1,
    ) -> torch.Tensor:
        """As `GroupedLayers`.

        Raises:
            ValueError: groups of rows or layers that there are not; shapes and dtypes of
                `grouped_matmul_ragged`.
            MemoryError: no room for a copy of the rows.
        """
        x_TK = x_TK.contiguous()
        check_tensor("x_TK", x_TK, ("T", self._in_features), self._dtype, device=CPU)
        check_tensor("starts", starts, (self._count + 1,), torch.int32, device=CPU)
        check_tensor("ids", ids, (self._count,), torch.int32, device=CPU)
        tokens = rows = x_TK.shape[0]
        pointers = starts.data_ptr(), ids.data_ptr(), 0
        if order is not None:
            rows *= top_k
            check_tensor("order", order, (rows,), torch.int32, device=CPU)
            pointers = *pointers[:2], order.data_ptr()
        y_MN = self._empty(rows)
        strides = self._in_features, self._out_features, 0
        self._call(x_TK, y_MN, pointers, (rows, tokens, top_k), strides)
        return y_MN

    def on_all(self, x_TLK: torch.Tensor) -> torch.Tensor:
        """As `GroupedLayers`.

        Raises:
            ValueError: another number of layers or columns, another dtype, or not on the CPU.
            MemoryError: no room for a copy of the rows.
        """
        if x_TLK.stride(-1) != 1:
            x_TLK = x_TLK.contiguous()
        shape = ("T", self._count, self._in_features)
        check_tensor("x_TLK", x_TLK, shape, self._dtype, device=CPU, contiguous=False)
        rows = x_TLK.shape[0]
        y_TLN = self._empty(rows, self._count)
        strides = x_TLK.stride(0), self._count * self._out_features, x_TLK.stride(1)
        self._call(x_TLK, y_TLN, (0, 0, 0), (rows, rows, 1), strides)
        return y_TLN

    def _empty(self, *rows: int) -> torch.Tensor:
        return torch.empty((*rows, self._out_features), dtype=self._dtype)

    def _call(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        groups: tuple[int, int, int],
        sizes: tuple[int, int, int],
        strides: tuple[int, int, int],
    ) -> None:
        """`groups`: addresses of starts, ids and order; `sizes`: rows of y, rows of x, top_k."""
        pointers = ctypes.addressof(self._weights), x.data_ptr(), y.data_ptr(), *groups
        threads = torch.get_num_threads()
        status = self._run(CALL.pack(*pointers, self._count, *sizes, *strides, threads))
        if status == BAD_BATCH:
            raise ValueError(
                f"groups must be of the {sizes[0]} rows, {self._count} layers and "
                f"{sizes[1]} rows of x"
            )
        if status:
            raise_for(status)
