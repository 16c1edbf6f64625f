"""Random tiny models of transformers whose weights are far from zero."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

VOCAB_SIZE = 211
MAX_POSITIONS = 160

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_random_model(
    family: str, *, seed: int = 0, class_suffix: str = "ForCausalLM", **fields: Any
) -> transformers.PreTrainedModel:
    """A transformers model of `family` (Llama, Qwen2, ...) whose weights are far from zero.

    `initializer_range` is large so that a mistake anywhere shows in the logits; biases and norms,
    which transformers sets to constants, are random too.
    """
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **fields})
    return randomize(f"{family}{class_suffix}", config, seed)


def randomize(
    model_class: str, config: transformers.PreTrainedConfig, seed: int = 0
) -> transformers.PreTrainedModel:
    """`model_class` of transformers with random weights, biases and norms too."""
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model
