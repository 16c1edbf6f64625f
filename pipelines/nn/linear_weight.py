"""The weights of linear layers as they are stored and as they are computed with, by encoding."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch

from quire.kernels.linear import prepare_linear
from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.encodings import Encoding

Apply = Callable[[torch.Tensor], torch.Tensor]
"""[T, K] to [T, N], both in the dtype of the model."""


class LinearWeight(ABC):
    """The matrix of one linear layer, [N, K] in meaning, on the host until `prepare`.

    `weight_scale`, `weight_scale_2` and `input_scale` are what the encoding has of these.
    """

    out_dim: int
    in_dim: int
    weight_scale: torch.Tensor | None = None
    weight_scale_2: torch.Tensor | None = None
    input_scale: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The matrix as it is stored."""
        return self.dense()

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        """Of the tensors that `encoding.tensors` names, as the checkpoint stores them.

        `dtype` is that of the activations.

        Raises:
            ValueError: their numbers are not what the encoding says.
        """

    @classmethod
    @abstractmethod
    def stack(cls, parts: Sequence[Self]) -> Self | None:
        """One matrix of the rows of all `parts`; None where they cannot be one."""

    @abstractmethod
    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        """These rows, in this order, and these columns: what one device holds.

        Raises:
            ValueError: the encoding cannot be cut there.
        """

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """The numbers, [N, K] in the dtype of the activations, on the host."""

    def is_packed_on(self, device: torch.device) -> bool:
        """Whether `device` computes with the weights as they are stored."""
        return False

    def apply_packed(self, bias_N: torch.Tensor | None, device: torch.device) -> Apply:
        """Place the stored weights on `device`, whose kernels must keep rows exact.

        Raises:
            ConfigError: the device cannot compute with them.
        """
        raise AssertionError(f"{type(self).__name__} is never packed")

    def prepare(
        self, bias_N: torch.Tensor | None, device: torch.device, plans: TilePlans | None
    ) -> Apply:
        """Lay the weights out on `device`; with `plans` rows are exact (`prepare_linear`)."""
        if self.is_packed_on(device):
            return self.apply_packed(None if bias_N is None else bias_N.to(device), device)
        return prepare_linear(
            self.dense().to(device),
            None if bias_N is None else bias_N.to(device),
            exact=plans is not None,
            plans=plans,
        )


class DenseWeight(LinearWeight):
    """Plain numbers: the rows of `weight_NK`, then those of `more_rows`, [n, K] each."""

    def __init__(self, weight_NK: torch.Tensor, *more_rows: torch.Tensor) -> None:
        self.in_dim = weight_NK.shape[1]
        self.out_dim = len(weight_NK) + sum(len(rows) for rows in more_rows)
        self._parts = weight_NK, *more_rows

    @classmethod
    def from_tensors(
        cls, encoding: Encoding, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> Self:
        weight = tensors["weight"].to(dtype)
        return cls(weight.t().contiguous() if encoding.is_transposed else weight)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        return cls(*(rows for part in parts for rows in part._parts))

    def select(self, rows: Sequence[slice], columns: slice) -> Self:
        whole = self.dense()
        return type(self)(torch.cat([whole[part, columns] for part in rows]))

    def dense(self) -> torch.Tensor:
        return self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)

    def prepare(
        self, bias_N: torch.Tensor | None, device: torch.device, plans: TilePlans | None
    ) -> Apply:
        if device.type != "cpu":
            return super().prepare(bias_N, device, plans)
        first, *others = self._parts
        exact = plans is not None
        return prepare_linear(first, bias_N, exact=exact, plans=plans, more_rows=others)


class PackedWeight(LinearWeight):
    """Numbers of few bits, with which CUDA computes as they are `stored`.

    `dtype` is that of the activations.
    """

    def __init__(self, stored: torch.Tensor, dtype: torch.dtype) -> None:
        self._weight = stored
        self._dtype = dtype

    @property
    def weight(self) -> torch.Tensor:
        return self._weight

    def is_packed_on(self, device: torch.device) -> bool:
        return device.type == "cuda"


def finite_scale(name: str, scale: torch.Tensor) -> torch.Tensor:
    """`scale` as contiguous float32.

    Raises:
        ValueError: a number of it is not finite.
    """
    scale = scale.float().contiguous()
    if not scale.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
    return scale
