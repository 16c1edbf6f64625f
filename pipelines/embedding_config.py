"""How an embedding model makes one vector of a text: the files of sentence-transformers. No torch.

modules.json lists the steps: the transformer, a pooling, perhaps a normalization. Without it an
encoder gives the state of its first token and a decoder that of its last, normalized.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import orjson
from numpy.typing import NDArray

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import MAX_JSON_BYTES, ConfigFile
from quire.pipelines.core.context import Pooling

_POOLING_KEYS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class EmbeddingConfig:
    """`pooling` of the last hidden states, whether vectors get length 1, prompts by name.

    `max_tokens` is the longest text the model was trained for; None: all its positions.
    """

    pooling: Pooling
    normalize: bool = True
    max_tokens: int | None = None
    lowers_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""

    def text(self, text: str) -> str:
        """What of `text` the model reads."""
        text = self.default_prompt + text
        return text.lower() if self.lowers_case else text


def finished_vector(
    vector: bytes, *, normalize: bool, dimensions: int | None = None
) -> NDArray[np.float32]:
    """fp32 [C] of a pooled vector's bytes; its first `dimensions` alone, then of length 1 if it is
    to `normalize`. A vector of zeros stays one."""
    cut = np.frombuffer(vector, dtype="<f4")[:dimensions].astype(np.float64)
    length = float(np.sqrt(np.square(cut).sum()))
    return (cut / length if normalize and length else cut).astype(np.float32)


def read_embedding_config(folder: Path, default: Pooling) -> EmbeddingConfig:
    """Read modules.json, the pooling's config.json and config_sentence_transformers.json.

    Raises:
        ModelError: a step or a pooling that is not supported, or a file is wrong.
    """
    prompts, default_prompt = _prompts(folder)
    modules, sizes = folder / "modules.json", folder / "sentence_bert_config.json"
    pooling, normalize = default, not modules.is_file()
    for step in _steps(modules) if modules.is_file() else ():
        kind = step.string("type").rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(folder / _inside(step) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise step.wrong("type", "Transformer, Pooling or Normalize")
    text = ConfigFile.read(sizes) if sizes.is_file() else ConfigFile(str(sizes), {})
    return EmbeddingConfig(
        pooling,
        normalize,
        max_tokens=text.integer("max_seq_length") if text.has("max_seq_length") else None,
        lowers_case=text.boolean("do_lower_case", False),
        prompts=prompts,
        default_prompt=default_prompt,
    )


def pooling_files(folder: Path) -> list[str]:
    """The files in subfolders that `read_embedding_config` reads, by their path in `folder`."""
    modules = folder / "modules.json"
    steps = _steps(modules) if modules.is_file() else []
    poolings = [step for step in steps if step.string("type").endswith(".Pooling")]
    return [f"{_inside(step)}/config.json" for step in poolings]


def _steps(path: Path) -> list[ConfigFile]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path}: expected at most {MAX_JSON_BYTES} bytes")
    try:
        steps = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ModelError(f"{path}: expected a list of JSON objects")
    return [ConfigFile(f"{path}: step {index}", step) for index, step in enumerate(steps)]


def _inside(step: ConfigFile) -> str:
    name = step.string("path")
    if PurePosixPath(name).name != name:
        raise step.wrong("path", "the name of a folder")
    return name


def _pooling(path: Path) -> Pooling:
    config = ConfigFile.read(path)
    modes = [key for key in config if key.startswith("pooling_mode_")]
    chosen = [key for key in modes if config.boolean(key, False)]
    if len(chosen) != 1 or chosen[0] not in _POOLING_KEYS:
        known = ", ".join(_POOLING_KEYS)
        raise ModelError(f"{path}: expected one of {known} to be true, found {chosen}")
    return _POOLING_KEYS[chosen[0]]


def _prompts(folder: Path) -> tuple[dict[str, str], str]:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}, ""
    config = ConfigFile.read(path)
    section = config.section("prompts")
    prompts = {name: section.string(name, "") for name in section}
    if not config.has("default_prompt_name"):
        return prompts, ""
    name = config.string("default_prompt_name")
    if name not in prompts:
        raise config.wrong("default_prompt_name", f"one of {', '.join(sorted(prompts))}")
    return prompts, prompts[name]
