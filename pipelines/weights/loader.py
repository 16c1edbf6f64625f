"""Reads the weights of a checked checkpoint, one tensor at a time.

Files are read, not mapped: a file that shrinks meanwhile is an error with a name, not SIGBUS.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from quire.pipelines.architectures.spec import EMBEDDING
from quire.pipelines.weights.safetensors_header import DTYPES, TensorEntry


class WeightLoader:
    """Hands out each weight once, as `dtype` on `device`.

    Host memory: one stacked weight at a time beside what is already on the device. `progress`
    gets the fraction of bytes read, 0..1.
    """

    def __init__(
        self,
        entries: Mapping[str, TensorEntry],
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float], None],
    ) -> None:
        self._waiting = dict(entries)
        self._dtype = dtype
        self._device = device
        self._progress = progress
        self._total_bytes = sum(entry.num_bytes for entry in entries.values())
        self._read_bytes = 0

    def take(self, *names: str) -> torch.Tensor:
        """The weight `names[0]`, or the weights of `names` stacked along their first dimension.

        Raises:
            ModelError: the file ended early, or a norm or the embedding is not finite.
        """
        parts = [self._read(self._waiting.pop(name)) for name in names]
        self._progress(self._read_bytes / self._total_bytes)
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
        return stacked.to(self._device)

    def take_linear(self, prefix: str, *names: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Stacked weight [N, K] and, where the checkpoint has them, biases [N] of linear layers."""
        weight = self.take(*(f"{prefix}{name}.weight" for name in names))
        biases = [f"{prefix}{name}.bias" for name in names]
        return weight, self.take(*biases) if biases[0] in self._waiting else None

    def finish(self) -> None:
        """Assert that the model has taken every weight."""
        if self._waiting:
            raise AssertionError(f"the model did not take {', '.join(self._waiting)}")

    def _read(self, entry: TensorEntry) -> torch.Tensor:
        buffer = np.empty(entry.num_bytes, dtype=np.uint8)
        view = buffer.data
        position = 0
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.begin)
            while position < entry.num_bytes:
                count = file.readinto(view[position:])
                if not count:
                    raise entry.wrong(f"{entry.num_bytes} bytes", f"{position} bytes")
                position += count
        self._read_bytes += entry.num_bytes
        stored: torch.dtype = getattr(torch, DTYPES[entry.dtype])
        tensor = torch.from_numpy(buffer).view(stored).view(entry.shape).to(self._dtype)
        if _is_scanned(entry) and not _is_finite(tensor):
            raise entry.wrong(f"finite values as {self._dtype}", "NaN or infinity")
        return tensor


def _is_scanned(entry: TensorEntry) -> bool:
    return entry.name == EMBEDDING or "norm" in entry.name


def _is_finite(tensor: torch.Tensor) -> bool:
    # The sum carries every NaN and infinity, 40 times faster; it may also overflow by itself.
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())
