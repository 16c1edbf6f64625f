"""Hands a model its weights, each once, from a checked checkpoint."""

from collections.abc import Callable, Iterable

import torch

from quire.kernels.gguf.encodings import ENCODINGS
from quire.pipelines.weights.gguf_blocks import dequantize_rows
from quire.pipelines.weights.weights import Weights


class WeightLoader:
    """Gives each weight once, as `dtype` on `device` or as it is stored.

    Host memory: one stacked weight at a time beside what is already on the device. `names` are the
    weights of the model, of which `progress` gets the fraction of bytes that are read, 0..1.
    """

    def __init__(
        self,
        weights: Weights,
        names: Iterable[str],
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float], None],
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._weights = weights
        self._waiting = {name: weights.entries[name].num_bytes for name in names}
        self._progress = progress
        self._total_bytes = sum(self._waiting.values())
        self._read_bytes = 0

    def __contains__(self, name: object) -> bool:
        return name in self._waiting

    def take(self, name: str) -> torch.Tensor:
        """The weight `name` on the device.

        Raises:
            ModelError: it cannot be read, or is not finite.
        """
        stored = self._weights.entries[name].dtype
        tensor = self.host(name)
        # An embedding of GGUF's is in blocks; a row of it is wanted as numbers.
        is_packed = stored in ENCODINGS
        tensor = dequantize_rows(tensor, stored, self.dtype) if is_packed else tensor.to(self.dtype)
        self.check_finite(name, tensor)
        return tensor.to(self.device)

    def check_finite(self, name: str, tensor: torch.Tensor) -> None:
        """Raise ModelError unless the numbers made of the weight `name` are finite."""
        if not _is_finite(tensor):
            entry = self._weights.entries[name]
            raise entry.wrong(f"finite values as {self.dtype}", "NaN or infinity")

    def host(self, name: str) -> torch.Tensor:
        """The weight `name` as it is stored, on the host.

        Raises:
            ModelError: it cannot be read, or has numbers of 16 bits or more that are not finite.
        """
        self._read_bytes += self._waiting.pop(name)
        tensor = self._weights.read(name)
        if tensor.is_floating_point() and tensor.itemsize > 1 and not _is_finite(tensor):
            raise self._weights.entries[name].wrong("finite values", "NaN or infinity")
        self._progress(self._read_bytes / max(self._total_bytes, 1))
        return tensor

    def finish(self) -> None:
        """Assert that the model has taken every weight."""
        if self._waiting:
            raise AssertionError(f"the model did not take {', '.join(self._waiting)}")


def _is_finite(tensor: torch.Tensor) -> bool:
    # The sum carries every NaN and infinity, 40 times faster; it may also overflow by itself.
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())
