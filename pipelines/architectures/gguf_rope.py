"""The rotary embedding that a GGUF file describes, as config.json would. No torch."""

import math

import numpy as np

from quire.config.errors import ModelError
from quire.pipelines.architectures.gguf_settings import GgufSettings, Values
from quire.pipelines.weights.file_reader import read_bytes
from quire.pipelines.weights.gguf_names import (
    GGUF_NAMES,
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
)


def rotated_share(model: GgufSettings, head_dim: int) -> float:
    count = model.integer("rope.dimension_count", head_dim)
    share = count / head_dim
    # In llama's files the halves of whole heads are interleaved.
    is_whole = GGUF_NAMES[model.architecture].rotated != ()
    if count > head_dim or int(share * head_dim) != count or (is_whole and share != 1.0):
        raise model.wrong("rope.dimension_count", f"the {head_dim} numbers of a head")
    return share


def rope_scaling(model: GgufSettings) -> Values:
    key = "rope.scaling.type"
    kind = model.string(key, "linear" if model.has("rope.scale_linear") else "none")
    if model.has_tensor(ROPE_FACTORS):
        if kind != "none":
            raise model.wrong(key, f"none beside {ROPE_FACTORS}")
        factors = _factors(model, ROPE_FACTORS)
        # A factor for each pair, whatever the length: LongRoPE with nothing else.
        return {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
        }
    if model.has_tensor(LONG_FACTORS):
        return _longrope(model)
    match kind:
        case "none":
            return {}
        case "linear":
            factor = model.number("rope.scale_linear", 1.0)
            factor = model.number("rope.scaling.factor", factor)
            return {"rope_type": "linear", "factor": factor} if factor != 1.0 else {}
        case "yarn":
            return _yarn(model)
        case "longrope":
            return _longrope(model)
    raise model.wrong(key, "none, linear, yarn or longrope")


def _yarn(model: GgufSettings) -> Values:
    values: Values = {
        "rope_type": "yarn",
        "factor": model.number("rope.scaling.factor"),
        "original_max_position_embeddings": model.integer("rope.scaling.original_context_length"),
    }
    for name in ("beta_fast", "beta_slow"):
        if model.has(f"rope.scaling.yarn_{name}"):
            values[name] = model.number(f"rope.scaling.yarn_{name}")
    return values


def _longrope(model: GgufSettings) -> Values:
    original = model.integer("rope.scaling.original_context_length")
    factor = model.integer("context_length") / original
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "rope_type": "longrope",
        "short_factor": _factors(model, SHORT_FACTORS),
        "long_factor": _factors(model, LONG_FACTORS),
        "original_max_position_embeddings": original,
        "attention_factor": model.number("rope.scaling.attn_factor", usual),
    }


def _factors(model: GgufSettings, name: str) -> list[float]:
    entry = model.file.entries.get(name)
    if entry is None:
        raise ModelError(f"{model.file.path}: {name}: expected a tensor, found nothing")
    if entry.dtype != "F32" or len(entry.shape) != 1 or entry.shape[0] > model.head_dim:
        found = f"{entry.dtype} {list(entry.shape)}"
        raise entry.wrong(f"F32 [{model.head_dim // 2}]", found)
    factors: list[float] = read_bytes(entry).view(np.float32).astype(float).tolist()
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise entry.wrong("numbers greater than 0", "others")
    return factors
