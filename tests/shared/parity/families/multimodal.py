"""Text models from checkpoints that have a vision tower too."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from parity.cases import ParityCase, save
from parity.families.gemma import GEMMA3
from parity.families.llama_like import MINISTRAL3
from parity.random_models import SIZES, randomize
from safetensors.torch import load_file, save_file

_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 28,
}
_VISION_TYPES = {"Gemma3": "siglip_vision_model", "Mistral3": "pixtral"}
_IN_MEMORY = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def _make(
    family: str, text_type: str, is_tied: bool, **fields: Any
) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(
        text_config={"model_type": text_type, **SIZES, **fields, "tie_word_embeddings": is_tied},
        vision_config={"model_type": _VISION_TYPES[family], **_VISION},
        tie_word_embeddings=is_tied,
        attn_implementation="eager",
    )
    return randomize(f"{family}ForConditionalGeneration", config)


def save_as_in_memory(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """With the names of transformers 5 in memory, as other tools write them."""
    save(model, folder)
    path = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        old = next(prefix for prefix in _IN_MEMORY if name.startswith(prefix))
        tensors[_IN_MEMORY[old] + name.removeprefix(old)] = tensor
    save_file(tensors, path)
    return folder


_MISTRAL = {"sliding_window": None}
_MODELS: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "gemma3 vision": ("Gemma3", "gemma3_text", True, dict(GEMMA3)),
    "gemma3 vision untied": ("Gemma3", "gemma3_text", False, dict(GEMMA3)),
    "mistral3": ("Mistral3", "mistral", False, _MISTRAL),
    "mistral3 tied window": ("Mistral3", "mistral", True, {"sliding_window": 20}),
    "ministral3 vision": ("Mistral3", "ministral3", True, dict(MINISTRAL3)),
}


def _case(
    name: str,
    encoding: str = "float32",
    suffix: str = "",
    write: Callable[[transformers.PreTrainedModel, Path], Path] = save,
) -> ParityCase:
    family, text_type, is_tied, fields = _MODELS[name]
    return ParityCase(
        architecture=f"{family}ForConditionalGeneration",
        variant=name + suffix,
        encoding=encoding,
        make=functools.partial(_make, family, text_type, is_tied, **fields),
        write=write,
    )


CASES = [
    *(_case(name) for name in _MODELS),
    *(_case(name, "bfloat16") for name in ("gemma3 vision", "mistral3")),
    _case("gemma3 vision", suffix=" names", write=save_as_in_memory),
    _case("mistral3", suffix=" names", write=save_as_in_memory),
]
