"""Finds a model's weights in safetensors files and checks them before any is read. No torch."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.spec import LM_HEAD, ModelSpec
from quire.pipelines.weights.safetensors_header import DTYPES, TensorEntry, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_IGNORED_SUFFIX = "rotary_emb.inv_freq"
"""A buffer that old transformers saved; the rotary table is computed from config.json."""


def open_checkpoint(folder: Path, spec: ModelSpec) -> dict[str, TensorEntry]:
    """Where each weight of `spec` lies.

    Every file's header is checked against its size, the index against the headers, and the
    tensors against the names, shapes and formats the model needs; no weight is read.

    Raises:
        ModelError: one line that names file, key, expected and found.
    """
    if (folder / SINGLE_FILE).is_file():
        source, found = folder / SINGLE_FILE, read_header(folder / SINGLE_FILE)
    elif (folder / INDEX_FILE).is_file():
        source, found = folder / INDEX_FILE, _read_shards(folder / INDEX_FILE)
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        others = f"; {pickled[0]} is a pickle, which can run code: convert it" if pickled else ""
        raise ModelError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither{others}")
    return _match(source, found, spec)


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


def _match(
    source: Path, found: Mapping[str, TensorEntry], spec: ModelSpec
) -> dict[str, TensorEntry]:
    expected = spec.weight_shapes()
    for name, shape in expected.items():
        entry = found.get(name)
        if entry is None:
            raise ModelError(f"{source}: {name}: expected a tensor {list(shape)}, found nothing")
        if entry.dtype not in DTYPES:
            raise entry.wrong(f"dtype {', '.join(DTYPES)}", entry.dtype)
        if entry.shape != shape:
            raise entry.wrong(f"shape {list(shape)}", f"{list(entry.shape)}")
    for name, entry in found.items():
        is_tied_head = name == LM_HEAD and spec.tie_word_embeddings
        if name not in expected and not is_tied_head and not name.endswith(_IGNORED_SUFFIX):
            raise entry.wrong(f"no such tensor in {spec.architecture}", f"{list(entry.shape)}")
    return {name: found[name] for name in expected}
