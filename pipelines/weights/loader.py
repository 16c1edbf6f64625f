"""Hands a model its weights, each once, from a checked checkpoint."""

from collections.abc import Callable, Iterable, Iterator

import torch

from quire.kernels.gguf.encodings import ENCODINGS
from quire.kernels.native import library
from quire.pipelines.weights.gguf_blocks import dequantize_rows
from quire.pipelines.weights.safetensors_weights import read_tensor
from quire.pipelines.weights.weights import Weights

BLOCK_BYTES = 4 * 1024**2
"""Of a matrix that is read some rows at a time: it stays in the processor's cache."""
_EXPONENTS = {
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF0000000000000,
}
"""The bits of the exponent; a number that has them all is not finite."""


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
        made = dequantize_rows(tensor, stored, self.dtype) if is_packed else tensor.to(self.dtype)
        if made is not tensor or tensor.itemsize == 1:
            self.check_finite(name, made)
        return made.to(self.device)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The matrix `name` on the host, as `dtype`, some rows at a time where its file allows: for
        who makes something else of them, and wants no memory for them all.

        Raises:
            ModelError: as of `take`.
        """
        entry = self._weights.entries[name]
        if not entry.is_plain:
            yield self.take(name).cpu()
            return
        del self._waiting[name]
        for part in entry.blocks(BLOCK_BYTES):
            rows = read_tensor(part).to(self.dtype)
            self.check_finite(name, rows)
            self._advance(part.num_bytes)
            yield rows

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
        num_bytes = self._waiting.pop(name)
        tensor = self._weights.read(name)
        if tensor.is_floating_point() and tensor.itemsize > 1 and not _is_finite(tensor):
            raise self._weights.entries[name].wrong("finite values", "NaN or infinity")
        self._advance(num_bytes)
        return tensor

    def _advance(self, num_bytes: int) -> None:
        self._read_bytes += num_bytes
        self._progress(self._read_bytes / max(self._total_bytes, 1))

    def finish(self) -> None:
        """Assert that the model has taken every weight."""
        if self._waiting:
            raise AssertionError(f"the model did not take {', '.join(self._waiting)}")


def _is_finite(tensor: torch.Tensor) -> bool:
    native, exponent = library(), _EXPONENTS.get(tensor.dtype)
    if native is not None and exponent is not None and tensor.is_cpu and tensor.is_contiguous():
        size, threads = tensor.itemsize, torch.get_num_threads()
        numbers = tensor.data_ptr(), tensor.numel()
        return bool(native.is_finite(size, exponent, *numbers, threads) == 1)
    # The sum carries every NaN and infinity, 40 times faster; it may also overflow by itself.
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())
