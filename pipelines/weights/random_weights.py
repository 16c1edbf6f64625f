"""`RandomWeights`: made up from the model's configuration, to measure speed without a checkpoint."""

import hashlib
import logging
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from quire.pipelines.architectures.encodings import TensorSpec
from quire.pipelines.weights.tensor_entry import TensorEntry

logger = logging.getLogger(__name__)

DEVIATION = 0.02
"""Of normal weights, as most models are initialized."""


class RandomWeights:
    """A tensor for each that the model cannot do without, the same in every process.

    Numbers are normal with deviation 0.02, norms 1, biases 0. Packed integers are any bits; scales
    are small and positive, so that what is dequantized is finite. A format without a type in torch
    is bytes.

    Args:
        folder: what errors name.
        tensors: what a checkpoint of the model must have.
        dtypes: torch's type by its name in safetensors.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorSpec],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.source = str(folder)
        self._dtypes = dtypes
        self.entries: Mapping[str, TensorEntry] = {
            name: self._entry(folder, name, tensors[name]) for name in _needed(tensors)
        }
        logger.warning("weights are random: load_format=random, the model says nonsense")

    def _entry(self, folder: Path, name: str, spec: TensorSpec) -> TensorEntry:
        dtype = next((dtype for dtype in spec.dtypes if dtype in self._dtypes), spec.dtypes[0])
        size = self._dtype(dtype).itemsize * prod(spec.shape)
        return TensorEntry(folder, name, dtype, spec.shape, 0, size)

    def _dtype(self, name: str) -> torch.dtype:
        return self._dtypes.get(name, torch.uint8)

    def read(self, name: str) -> torch.Tensor:
        """As `Weights.read`."""
        entry = self.entries[name]
        dtype, shape = self._dtype(entry.dtype), entry.shape
        module, _, kind = name.rpartition(".")
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        if kind in ("g_idx", "weight_g_idx"):
            return self._groups(module, shape).to(dtype)
        if kind == "weight_shape":
            return self._packed_shape(module).to(dtype)
        if dtype == torch.float8_e8m0fnu or "scale" in kind:
            return _scales(shape, dtype, generator)
        if kind.endswith("bias"):
            return torch.zeros(shape).to(dtype)
        if dtype == torch.bool:
            return torch.rand(shape, generator=generator) < 0.5
        if not dtype.is_floating_point:
            return _any_bits(shape, dtype, generator)
        if len(shape) <= 1:
            return torch.ones(shape).to(dtype)
        return (torch.randn(shape, generator=generator) * DEVIATION).to(dtype)

    def _groups(self, module: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The group of each input, as many of each; other tensors tell how many there are."""
        gptq = self.entries.get(f"{module}.scales")
        packed = self.entries.get(f"{module}.weight_scale")
        count = gptq.shape[0] if gptq else packed.shape[1] if packed else 1
        return torch.arange(prod(shape)).mul(count).div(max(prod(shape), 1), rounding_mode="floor")

    def _packed_shape(self, module: str) -> torch.Tensor:
        """[N, K] of 4-bit numbers, eight to a word."""
        rows, words = self.entries[f"{module}.weight_packed"].shape
        return torch.tensor([rows, words * 8])


def _needed(tensors: Mapping[str, TensorSpec]) -> list[str]:
    """The names without those of optional tensors; of scales that stand for each other the first."""
    rivals: dict[tuple[str, bool], list[str]] = {}
    for name, spec in tensors.items():
        module, _, kind = name.rpartition(".")
        if spec.is_optional and "scale" in kind:
            rivals.setdefault((module, kind.startswith("weight")), []).append(name)
    chosen = {names[0] for names in rivals.values() if len(names) > 1}
    return [name for name, spec in tensors.items() if not spec.is_optional or name in chosen]


def _any_bits(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    sizes = (*shape[:-1], shape[-1] * dtype.itemsize) if shape else (dtype.itemsize,)
    bits = torch.randint(0, 256, sizes, generator=generator, dtype=torch.uint8)
    return bits.view(dtype).view(shape)


def _scales(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    exponents = torch.randint(-9, -6, shape, generator=generator)
    if dtype.is_floating_point:
        # Powers of two are exact in every type, that of exponents alone included.
        return (2.0**exponents).to(dtype)
    # Integer scales are the exponents of MXFP4, with a bias of 127.
    return (exponents + 127).to(dtype)
