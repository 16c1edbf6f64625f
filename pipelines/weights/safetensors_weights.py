"""`SafetensorWeights`: one file or shards with an index, checked as a whole before any is read."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.weights.file_reader import read_bytes
from quire.pipelines.weights.safetensors_header import read_header
from quire.pipelines.weights.tensor_entry import TensorEntry

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""By their name in a header."""


class SafetensorWeights:
    """The tensors of a folder's safetensors files.

    Every file's header is checked against its size and the index against the headers.

    Raises:
        ModelError: one line that names file, key, expected and found.
    """

    def __init__(self, folder: Path) -> None:
        single, index = folder / SINGLE_FILE, folder / INDEX_FILE
        is_single = single.is_file()
        self.source = str(single if is_single else index)
        self.entries: Mapping[str, TensorEntry] = (
            read_header(single) if is_single else _read_shards(index)
        )

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the folder has such files."""
        return (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()

    def read(self, name: str) -> torch.Tensor:
        """As `Weights.read`."""
        return read_tensor(self.entries[name])


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """The tensor of a plain `entry`, as stored.

    Raises:
        ModelError: the file is not what it was when it was checked, or no dtype of torch's is it.
    """
    if entry.dtype not in TORCH_DTYPES:
        raise entry.wrong(f"dtype {', '.join(TORCH_DTYPES)}", entry.dtype)
    stored = TORCH_DTYPES[entry.dtype]
    if not entry.num_bytes:
        return torch.empty(entry.shape, dtype=stored)
    stored_bytes = torch.from_numpy(read_bytes(entry, torch.get_num_threads()))
    return stored_bytes.view(stored).view(entry.shape)


def _read_shards(index: Path) -> dict[str, TensorEntry]:
    config = ConfigFile.read(index)
    weight_map = config.section("weight_map")
    if not config.has("weight_map"):
        raise config.wrong("weight_map", "a JSON object")
    shard_of = {name: weight_map.string(name) for name in weight_map}
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(set(shard_of.values())):
        if PurePosixPath(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{index}: weight_map: expected a .safetensors file name, found {shard!r}"
            )
        for name, entry in read_header(index.parent / shard).items():
            if shard_of.get(name) != shard:
                raise entry.wrong(f"{index.name} to list it here", shard_of.get(name, "nothing"))
            entries[name] = entry
    for name, shard in shard_of.items():
        if name not in entries:
            raise ModelError(
                f"{index.parent / shard}: {name}: expected the tensor {index.name} lists, "
                "found nothing"
            )
    return entries
