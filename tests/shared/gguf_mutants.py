"""Damaged copies of a GGUF file, and all that is done with a file before it is computed with."""

import random
from collections.abc import Iterator
from pathlib import Path

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.tokenizer import TextTokenizer
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.gguf_file import gguf_header_bytes


def mutants(data: bytes, header_bytes: int, seed: int) -> Iterator[bytes]:
    """Bytes flipped, numbers replaced, pieces cut out or doubled, mostly in the first part."""
    rng = random.Random(seed)
    numbers = (0, 1, 2, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
    while True:
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            # Most of a header are tokens; its first 600 bytes and the tensors decide more.
            place = rng.choice(
                (
                    rng.randrange(600),
                    rng.randrange(header_bytes),
                    rng.randrange(header_bytes - 900, header_bytes),
                )
            )
            match rng.randrange(5):
                case 0:
                    mutant[place] ^= 1 << rng.randrange(8)
                case 1:
                    mutant[place] = rng.randrange(256)
                case 2:
                    size = rng.choice((4, 8))
                    number = rng.choice(numbers) % 2 ** (8 * size)
                    mutant[place : place + size] = number.to_bytes(size, "little")
                case 3:
                    del mutant[place : place + rng.randrange(1, 40)]
                case 4:
                    mutant[place:place] = mutant[place : place + rng.randrange(1, 40)]
        yield bytes(mutant)


def open_model(path: Path) -> None:
    """All that is done with a file before its numbers are computed with."""
    spec = load_model_spec(path)
    weights = load_weights(path)
    for name in match_weights(weights, spec):
        weights.read(name)
    TextTokenizer.from_folder(path).encode("a b <think> 12")


def run_mutants(source: Path, path: Path, count: int, seed: int) -> int:
    """How many of them were refused."""
    data, header_bytes = source.read_bytes(), len(gguf_header_bytes(source))
    refused = 0
    for _, mutant in zip(range(count), mutants(data, header_bytes, seed), strict=False):
        path.write_bytes(mutant)
        try:
            open_model(path)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(path) in str(error)
    return refused
