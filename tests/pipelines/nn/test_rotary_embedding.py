"""Rotary tables against transformers' own initializers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.nn.rotary_embedding import rotary_embedding

HEAD_DIM = 64
MAX_POSITIONS = 512

PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn with options": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "truncate": False,
    },
    "yarn attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.25,
    },
    "yarn narrow": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 500.0,
        "beta_slow": 400.0,
    },
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 128,
        "factor": 4.0,
        "short_factor": [1.0 + i / 32 for i in range(HEAD_DIM // 2)],
        "long_factor": [2.0 + i / 4 for i in range(HEAD_DIM // 2)],
    },
}


def config_of(parameters: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_theta": 50000.0, **parameters},
    )


@pytest.mark.parametrize("max_length", [100, MAX_POSITIONS, 3 * MAX_POSITIONS])
@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies_and_attention_factor_are_those_of_transformers(
    name: str, max_length: int, tmp_path: Path
) -> None:
    config = config_of(PARAMETERS[name])
    config.save_pretrained(tmp_path)
    spec = load_model_spec(tmp_path)
    kind = PARAMETERS[name]["rope_type"]
    compute = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    expected, factor = compute(config, device="cpu", seq_len=max_length)

    rope = rotary_embedding(spec.layers[0].attention.rope, max_length)

    torch.testing.assert_close(rope.frequencies(), expected, rtol=1e-6, atol=0)
    assert rope.attention_factor() == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("name", ["default", "llama3", "yarn"])
def test_table_is_cosines_then_sines_of_every_position(name: str, tmp_path: Path) -> None:
    config = config_of(PARAMETERS[name])
    config.save_pretrained(tmp_path)
    spec = load_model_spec(tmp_path)
    positions = torch.arange(MAX_POSITIONS)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    half = HEAD_DIM // 2

    table = rotary_embedding(spec.layers[0].attention.rope, MAX_POSITIONS).cos_sin(
        torch.device("cpu")
    )

    assert table.shape == (MAX_POSITIONS, HEAD_DIM)
    assert table.dtype == torch.float32
    # An angle of 512 radians in fp32 is known to 3e-5.
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], rtol=0, atol=1e-4)
    torch.testing.assert_close(table[:, half:], sin[0, :, half:], rtol=0, atol=1e-4)
