"""Loads a model of transformers from a folder: only safetensors, no remote code, no network."""

import logging
from pathlib import Path
from typing import Any

import torch

from quire.config.errors import ModelError

logger = logging.getLogger(__name__)

_MAX_REASON = 300


def load_pretrained(
    auto_class: Any, folder: Path, dtype: torch.dtype, *, unused: str = "", **options: Any
) -> Any:
    """What `auto_class`, one of transformers' Auto classes, makes of the folder.

    Tensors of modules named `unused` may be missing: nothing reads what they compute.

    Raises:
        ModelError: it cannot be loaded, or the checkpoint lacks a weight, which transformers would
            make up.
    """
    try:
        model, found = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except library_errors() as error:
        raise ModelError(f"{folder}: transformers cannot load it: {in_one_line(error)}") from error
    missing = sorted(name for name in found["missing_keys"] if unused not in name.split("."))
    if missing:
        raise ModelError(
            f"{folder}: {missing[0]}: expected a tensor of {type(model).__name__}, found nothing"
        )
    if unexpected := sorted(found["unexpected_keys"]):
        logger.warning(
            "%s: %s does not read %d of the tensors, %s the first",
            folder,
            type(model).__name__,
            len(unexpected),
            unexpected[0],
        )
    return model


def library_errors() -> tuple[type[Exception], ...]:
    """What the code of hundreds of models raises for what is in a file or asked of it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    builtin = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError)
    others = (MemoryError, OSError, RuntimeError, TypeError, ValueError)
    return (*builtin, *others, SafetensorError, StrictDataclassError)


def in_one_line(error: BaseException) -> str:
    """The beginning of what a library said."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
