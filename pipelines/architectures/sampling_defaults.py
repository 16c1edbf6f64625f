"""The sampling parameters that a model's authors recommend, from its generation_config.json."""

from collections.abc import Mapping
from pathlib import Path

from quire.pipelines.architectures.config_file import ConfigFile

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, float("inf")),
}
_ABOVE_ZERO = ("top_p", "repetition_penalty")


def load_sampling_defaults(folder: Path) -> dict[str, float]:
    """Values by their request field; empty without the file.

    As vLLM: `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` count, `do_sample`
    does not. `top_k` 0 keeps every token.

    Raises:
        ModelError: a value that no request could ask for.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    config = ConfigFile.read(path)
    found: dict[str, float] = {}
    for name, (low, high) in _RANGES.items():
        if not config.has(name):
            continue
        if config.is_zero(name) and name not in _ABOVE_ZERO:
            found[name] = 0.0
            continue
        value = config.number(name)
        if not low <= value <= high:
            raise config.wrong(name, f"a number from {low:g} to {high:g}")
        found[name] = value
    if config.has("top_k"):
        found["top_k"] = config.integer("top_k", minimum=-1)
    return found
