"""GGUF files: each block type, mixed ones, and each architecture's names and layout."""

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.cases import ParityCase
from parity.families.llama import LLAMA3, LONGROPE, YARN
from parity.gguf_writer import Chooser, all_of, mixed, mixed_small, write_gguf
from parity.moe_models import spread_mixture
from parity.random_models import SIZES, randomize

LINEAR = {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
"""Rows of a whole K-quant block."""


def _write(choose: Chooser, model: transformers.PreTrainedModel, folder: Path) -> Path:
    return write_gguf(model, folder / "model.gguf", choose)


def _make(family: str, **fields: Any) -> transformers.PreTrainedModel:
    fields = {**SIZES, "attn_implementation": "eager", **fields}
    config_class = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, config_class)(**fields)
    return spread_mixture(randomize(f"{family}ForCausalLM", config))


def _case(
    variant: str, family: str, kind: str, choose: Chooser | None = None, **fields: Any
) -> ParityCase:
    if "rope_parameters" in fields:
        rope = fields["rope_parameters"]
        if "rope_type" in rope:
            fields = {**fields, "rope_parameters": {"rope_theta": 10000.0, **rope}}
    return ParityCase(
        architecture=f"{family}ForCausalLM",
        variant=variant,
        encoding=f"gguf {kind}",
        make=functools.partial(_make, family, **fields),
        write=functools.partial(_write, choose or all_of(kind)),
        settings={"dtype": "float32"},
        # transformers' own roundings in float32 reach 1.1e-4 there.
        reference_dtype=torch.float64 if family.startswith("Gemma") else torch.float32,
    )


CASES = [
    *(
        _case("llama", "Llama", kind, **WIDE)
        for kind in (
            *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"),
            *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
        )
    ),
    _case("llama narrow", "Llama", "Q4_K_M", mixed_small),
    _case("llama", "Llama", "Q4_K_M", mixed, **{**WIDE, "num_hidden_layers": 2}),
    _case("llama tied", "Llama", "Q4_K_M", mixed, **WIDE, tie_word_embeddings=True),
    _case("llama biases", "Llama", "Q8_0", attention_bias=True, mlp_bias=True),
    _case("llama one kv head", "Llama", "Q8_0", num_key_value_heads=1),
    _case(
        "llama linear rope", "Llama", "F32", rope_parameters={"rope_type": "linear", "factor": 3.0}
    ),
    _case("llama llama3 rope", "Llama", "F32", rope_parameters=LLAMA3),
    _case("llama yarn rope", "Llama", "F32", rope_parameters=YARN),
    _case("mistral window", "Mistral", "Q8_0", sliding_window=20),
    _case("mixtral", "Mixtral", "Q8_0", num_local_experts=4, num_experts_per_tok=2),
    _case("qwen2", "Qwen2", "Q4_K_M", mixed, **WIDE),
    _case("qwen2 tied", "Qwen2", "Q8_0", tie_word_embeddings=True),
    _case("qwen3", "Qwen3", "Q4_K_M", mixed, **WIDE),
    _case(
        "qwen3 experts",
        "Qwen3Moe",
        "Q8_0",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    ),
    _case("phi3", "Phi3", "Q4_0", pad_token_id=0, sliding_window=20),
    _case(
        "phi3 longrope",
        "Phi3",
        "F32",
        pad_token_id=0,
        sliding_window=None,
        original_max_position_embeddings=40,
        rope_parameters=LONGROPE,
    ),
    _case("gemma", "Gemma", "Q8_0"),
    _case("gemma2", "Gemma2", "Q8_0", sliding_window=20, query_pre_attn_scalar=16),
    _case(
        "gemma3", "Gemma3", "Q8_0", sliding_window=20, query_pre_attn_scalar=16, num_hidden_layers=7
    ),
]
