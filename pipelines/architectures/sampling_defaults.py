"""The sampling parameters that a model's authors recommend: generation_config.json, or the keys
`general.sampling.*` of a GGUF file."""

from collections.abc import Mapping
from pathlib import Path

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.weights.gguf_file import is_gguf
from quire.pipelines.weights.gguf_header import read_gguf_header

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, float("inf")),
}
_ABOVE_ZERO = ("top_p", "repetition_penalty")
_GGUF_KEYS: Mapping[str, str] = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def load_sampling_defaults(folder: Path) -> dict[str, float]:
    """Values by their request field; empty where the model says nothing.

    As vLLM: `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` count, `do_sample`
    does not. `top_k` 0 keeps every token.

    Raises:
        ModelError: a value that no request could ask for.
    """
    config = _recommended(folder)
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


def _recommended(folder: Path) -> ConfigFile:
    if is_gguf(folder):
        metadata = read_gguf_header(folder).metadata
        values = {name: metadata[key] for name, key in _GGUF_KEYS.items() if key in metadata}
        return ConfigFile(str(folder), values)
    path = folder / "generation_config.json"
    return ConfigFile.read(path) if path.is_file() else ConfigFile(str(path), {})
