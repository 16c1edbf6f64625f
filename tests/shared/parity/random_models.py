"""Random tiny models of transformers whose weights are far from zero."""

from typing import Any

import torch
import transformers

VOCAB_SIZE = 211
MAX_POSITIONS = 160


def make_random_model(family: str, *, seed: int = 0, **fields: Any) -> transformers.PreTrainedModel:
    """A transformers model of `family` (Llama, Qwen2, ...) whose weights are far from zero.

    `initializer_range` is large so that a mistake anywhere shows in the logits; biases and norms,
    which transformers sets to constants, are random too.
    """
    config = getattr(transformers, f"{family}Config")(
        **{
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
            **fields,
        }
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model
