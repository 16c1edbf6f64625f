"""Llama 4: text models, and the text part of one that also sees."""

from typing import Any

import transformers
from parity.cases import ParityCase, save_in_shards
from parity.moe_models import decide_mixture, spread_mixture
from parity.random_models import SIZES, randomize

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vision_output_dim": 32,
    "image_size": 28,
    "patch_size": 14,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
BASE = {
    "num_local_experts": 4,
    "intermediate_size_mlp": 80,
    "no_rope_layers": [1, 0, 1],
    "floor_scale": 16,
    "attn_scale": 0.5,
}

_MODELS: dict[str, dict[str, Any]] = {
    "llama4": {**BASE, "rope_parameters": LLAMA3},
    # Histories have 70 tokens: several chunks, and a cut at the length of one.
    "llama4 chunks": {**BASE, "attention_chunk_size": 32},
    "llama4 short chunks": {
        **BASE,
        "attention_chunk_size": 16,
        "layer_types": ["full_attention", "chunked_attention", "chunked_attention"],
    },
    "llama4 dense layers": {
        **BASE,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
        "attn_temperature_tuning": False,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "llama4 two experts": {**BASE, "num_experts_per_tok": 2, "moe_layers": [0, 2]},
}


def _case(name: str, encoding: str = "float32", *, sees: bool = False) -> ParityCase:
    def make() -> transformers.PreTrainedModel:
        text = {**SIZES, **_MODELS[name]}
        config: transformers.PreTrainedConfig = transformers.Llama4TextConfig(**text)
        if sees:
            config = transformers.Llama4Config(text_config=text, vision_config=VISION)
        config._attn_implementation = "eager"
        kind = "Llama4ForConditionalGeneration" if sees else "Llama4ForCausalLM"
        model = randomize(kind, config)
        return decide_mixture(model) if encoding == "bfloat16" else spread_mixture(model)

    return ParityCase(
        architecture="Llama4ForConditionalGeneration" if sees else "Llama4ForCausalLM",
        variant=name,
        encoding=encoding,
        make=make,
        write=save_in_shards,
    )


CASES = [
    *(_case(name) for name in _MODELS),
    _case("llama4 chunks", sees=True),
    _case("llama4", "bfloat16"),
    _case("llama4 chunks", "bfloat16"),
]
