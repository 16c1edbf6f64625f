"""Mutate a safetensors file thousands of times and read each: `python safetensors_files.py FOLDER N`.

Each mutant is read by Quire and by the safetensors library. Prints one JSON line: how many of each
outcome there were, and what must not be.
"""

import collections
import json
import random
import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from quire.config.errors import ModelError
from quire.pipelines.architectures.encodings import TensorSpec
from quire.pipelines.weights.checkpoint import match_weights
from quire.pipelines.weights.safetensors_weights import SINGLE_FILE, TORCH_DTYPES, SafetensorWeights
from quire.pipelines.weights.tensor_entry import TensorEntry

SPECS = {
    "model.embed.weight": TensorSpec((5, 4)),
    "model.norm": TensorSpec((4,)),
    "model.up.weight": TensorSpec((3, 4), ("U8", "I8")),
    "model.up.scale": TensorSpec((), ("F32",)),
    "model.none": TensorSpec((0, 4)),
}
TEXTS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"1", b"9", b"-", b"e9", b".5", b"null"]
TEXTS += [b" ", b"\\u0000", b"\xff", b"\xef\xbb\xbf", b"1e400", b"NaN", b"9" * 30, b'"shape":[2],']


class Table:
    """What a model would expect."""

    architecture = "Fuzzed"

    def tensors(self) -> dict[str, TensorSpec]:
        return SPECS

    def ignores(self, name: str) -> bool:
        return False


def original(folder: Path) -> bytes:
    torch.manual_seed(0)
    tensors = {
        "model.embed.weight": torch.randn(5, 4),
        "model.norm": torch.randn(4).bfloat16(),
        "model.up.weight": torch.randint(0, 99, (3, 4), dtype=torch.uint8),
        "model.up.scale": torch.tensor(0.5),
        "model.none": torch.empty(0, 4, dtype=torch.float16),
    }
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    return (folder / SINGLE_FILE).read_bytes()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flipped bits, inserted, removed and repeated pieces, wherever; the header's length is put
    right in half of the cases, so that what is in it is looked at too."""
    length = int.from_bytes(content[:8], "little")
    header, data = bytearray(content[8 : 8 + length]), bytearray(content[8 + length :])
    size = bytearray(content[:8])
    is_repaired = rng.random() < 0.5
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        part = rng.choices((header, data, size), (8, 2, 1))[0]
        if not part:
            continue
        at = rng.randrange(len(part))
        match rng.randrange(6):
            case 0:
                part[at] ^= 1 << rng.randrange(8)
            case 1:
                part[at] = rng.randrange(256)
            case 2:
                part[at:at] = rng.choice(TEXTS)
            case 3:
                del part[at : at + rng.choice((1, 2, 8, 40))]
            case 4:
                part[at:at] = part[at : at + rng.choice((1, 8, 60))]
            case 5:
                text = rng.choice(TEXTS)
                part[at : at + len(text)] = text
    if is_repaired:
        size = bytearray(len(header).to_bytes(8, "little"))
    mutant = bytes(size + header + data)
    return mutant[: rng.randrange(len(mutant))] if rng.random() < 0.1 else mutant


def relative(entries: dict[str, TensorEntry]) -> dict[str, object]:
    start = min(entry.begin for entry in entries.values()) if entries else 0
    return {
        name: (entry.dtype, entry.shape, entry.begin - start, entry.end - start)
        for name, entry in entries.items()
    }


def library(content: bytes) -> dict[str, object] | None:
    """What the safetensors library makes of it; None: it refuses."""
    try:
        found = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (value["dtype"], tuple(value["shape"])) for name, value in found}


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    content = original(folder)
    expected = relative(dict(SafetensorWeights(folder).entries))
    seen: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    for seed in range(count):
        mutant = mutate(content, random.Random(seed))
        (folder / SINGLE_FILE).write_bytes(mutant)
        theirs = library(mutant)
        try:
            weights = SafetensorWeights(folder)
            entries = relative(dict(weights.entries))
            unknown = {entry.dtype for entry in weights.entries.values()} - set(TORCH_DTYPES)
            if theirs is None and unknown:
                # Not ours to read; refused when a model wants it.
                seen["unknown type"] += 1
            elif theirs is None:
                wrong.append(f"seed {seed}: read, but not by the library: {entries}"[:300])
            elif theirs != {name: value[:2] for name, value in entries.items()}:  # type: ignore[index]
                wrong.append(f"seed {seed}: read as {entries}, by the library as {theirs}"[:600])
            match_weights(weights, Table())
            for name in weights.entries:
                weights.read(name)
        except ModelError as error:
            seen["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                wrong.append(f"seed {seed}: refused in other than one line: {str(error)[:200]}")
        else:
            seen["served"] += 1
            if entries != expected:
                wrong.append(f"seed {seed}: served as {entries}"[:300])
    print(json.dumps({**seen, "wrong": wrong}))


if __name__ == "__main__":
    main()
