"""A case is a random tiny model, how it is written, and how far its logits may be off."""

import importlib
import pkgutil
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from parity import families
from parity.driver import Driver, load_folder

LENGTH = 70
"""Tokens of the history; cut into chunks, and its end decoded one by one."""


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """As transformers saves it."""
    model.save_pretrained(folder)
    return folder


def save_in_shards(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """In several files with an index."""
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


@dataclass(frozen=True)
class Errors:
    """Greatest differences (bfloat16, `is_mean`: root mean squares) of logits from the reference's, by
    the way the history was run (None: not one of the model's).

    `bound` is what they may be at most, `scale` the greatest logit.
    """

    prefill: float
    chunked: float | None
    decode: float | None
    bound: float
    scale: float

    @property
    def worst(self) -> float:
        errors = (self.prefill, self.chunked, self.decode)
        return max(error for error in errors if error is not None)


@dataclass(frozen=True, kw_only=True)
class ParityCase:
    """One row of the parity table.

    `make` gives the model, and `write` its checkpoint: a folder or file. `write` may change the
    model, which afterwards is the reference: of quantized weights it has the dequantized ones.
    A bfloat16 case is held to `bfloat16_factor` times the error that transformers makes itself in
    bfloat16, both as root mean squares: the greatest of thousands of roundings is luck.
    """

    architecture: str
    """The class in config.json."""
    variant: str
    make: Callable[[], transformers.PreTrainedModel]
    encoding: str = "float32"
    write: Callable[[transformers.PreTrainedModel, Path], Path] = save
    tolerance: float = 1e-4
    bfloat16_factor: float = 1.25
    reference_dtype: torch.dtype = torch.float32
    """float64 where the reference's own roundings could be more than ours."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_mean: bool = False
    """Errors are root mean squares in float32 too."""

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.variant}-{self.encoding}".replace(" ", "_")

    def measure(self, folder: Path) -> Errors:
        """Write the checkpoint into `folder`, load it, and compare every position's logits."""
        model = self.make()
        rng = random.Random(self.name)
        history = rng.choices(range(model.config.get_text_config().vocab_size), k=LENGTH)
        bound = self.tolerance
        measure = root_mean_square if self.is_mean else difference
        if self.encoding == "bfloat16":
            measure = root_mean_square
            path = self.write(rounded_to(model, torch.bfloat16), folder)
            rounded = reference_logits(model, history)
            expected = reference_logits(model.float(), history)
            bound = self.bfloat16_factor * measure(rounded, expected)
        else:
            path = self.write(model, folder)
            if self.reference_dtype != torch.float32:
                model.to(self.reference_dtype)
            expected = reference_logits(model, history)
        # Longer than 40, so that longrope takes its long factors as transformers does here.
        loaded = load_folder(path, **{"max_length": LENGTH + 10, **self.settings})

        def error(steps: list[list[tuple[int, int]]]) -> float:
            driver = Driver(loaded)
            driver.clean()
            (logits,) = driver.logits([history], steps)
            return measure(logits, expected)

        return Errors(
            prefill=error([[(0, LENGTH)]]),
            chunked=error(random_cuts(rng)),
            decode=error([[(0, 30)], *([(0, 1)] for _ in range(LENGTH - 30))]),
            bound=bound,
            scale=float(expected.abs().max()),
        )


def reference_logits(model: transformers.PreTrainedModel, history: list[int]) -> torch.Tensor:
    """transformers' logits of every position, fp32 [T, V]."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([history])).logits[0].float()
    return logits


def rounded_to(
    model: transformers.PreTrainedModel, dtype: torch.dtype
) -> transformers.PreTrainedModel:
    """With rotary frequencies as they were: `from_pretrained` does not round those either."""
    exact = {name: buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    model.to(dtype)
    for name, buffer in exact.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)
    return model


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).abs().max())


def root_mean_square(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).square().mean().sqrt())


def random_cuts(rng: random.Random) -> list[list[tuple[int, int]]]:
    cuts = sorted(rng.sample(range(1, LENGTH), 5))
    return [[(0, end - start)] for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True)]


class Case(Protocol):
    """What a module's `CASES` holds."""

    @property
    def name(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    @property
    def variant(self) -> str: ...

    @property
    def encoding(self) -> str: ...

    def measure(self, folder: Path) -> Errors: ...


def all_cases() -> tuple[Case, ...]:
    """Of every module in `families`."""
    found: list[Case] = []
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        found += importlib.import_module(module.name).CASES
    return tuple(found)
