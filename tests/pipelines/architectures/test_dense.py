"""Dense architectures with names and keys of their own: weights as transformers has them, old
keys, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.spec import ModelSpec

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GPT2_SIZES = {"vocab_size": 61, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("Phi3", {"num_key_value_heads": 2, "pad_token_id": 0}),
    ("Phi", {"qk_layernorm": True}),
    ("StableLm", {"num_key_value_heads": 2, "use_qkv_bias": True}),
    ("StableLm", {"num_key_value_heads": 2, "use_parallel_residual": True, "qk_layernorm": True}),
    ("GPTNeoX", {}),
    ("GPTNeoX", {"attention_bias": False, "use_parallel_residual": False}),
    ("Glm", {"num_key_value_heads": 2, "pad_token_id": 0}),
    ("Glm4", {"num_key_value_heads": 2, "pad_token_id": 0, "attention_bias": False}),
    ("Starcoder2", {"num_key_value_heads": 2}),
    ("Starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    ("GPT2", {}),
    ("GPT2", {"n_inner": 96, "tie_word_embeddings": False}),
]


def read(folder: Path, architecture: str, **fields: object) -> ModelSpec:
    sizes = GPT2_SIZES if architecture.startswith("GPT2") else {**SIZES, "rms_norm_eps": 1e-5}
    config = {"architectures": [architecture], **sizes, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_spec(folder)


@pytest.mark.parametrize(("family", "fields"), MODELS)
def test_names_and_shapes_are_those_of_transformers(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    sizes = GPT2_SIZES if family == "GPT2" else SIZES
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    config = getattr(transformers, f"{family}Config")(**sizes, **fields)
    model = getattr(transformers, name)(config)
    config.architectures = [name]
    config.save_pretrained(tmp_path)

    spec = load_model_spec(tmp_path)

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    elif family == "GPTNeoX":
        # What transformers calls it in memory only.
        shapes["embed_out.weight"] = shapes.pop("lm_head.weight")
    assert {name: tensor.shape for name, tensor in spec.tensors().items()} == shapes
    assert spec.num_parameters == model.num_parameters()
    assert spec.max_position_embeddings == spec.longest_context == 128


@pytest.mark.parametrize(
    ("architecture", "fields", "rotary_dim", "theta"),
    [
        ("StableLmForCausalLM", {}, 4, 1e4),
        ("StableLmForCausalLM", {"partial_rotary_factor": 0.5, "rope_theta": 5e4}, 8, 5e4),
        ("PhiForCausalLM", {}, 8, 1e4),
        ("PhiForCausalLM", {"partial_rotary_factor": 0.25}, 4, 1e4),
        ("GPTNeoXForCausalLM", {}, 4, 1e4),
        ("GPTNeoXForCausalLM", {"rotary_pct": 1.0, "rotary_emb_base": 25000}, 16, 25e3),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.75}, 12, 1e4),
        ("GlmForCausalLM", {"head_dim": 24}, 12, 1e4),
        ("Glm4ForCausalLM", {}, 64, 1e4),
        ("Starcoder2ForCausalLM", {"rope_theta": 1e6}, 16, 1e6),
    ],
)
def test_keys_before_rope_parameters_and_their_defaults(
    architecture: str, fields: dict[str, object], rotary_dim: int, theta: float, tmp_path: Path
) -> None:
    rope = read(tmp_path, architecture, **fields).layers[0].attention.rope

    assert (rope.rotary_dim, rope.theta) == (rotary_dim, theta)


LONGROPE = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def test_su_is_the_old_name_of_longrope(tmp_path: Path) -> None:
    ropes = [
        read(
            tmp_path,
            "Phi3ForCausalLM",
            original_max_position_embeddings=32,
            rope_scaling={"type": name, **LONGROPE},
        )
        .layers[0]
        .attention.rope
        for name in ("su", "longrope")
    ]

    assert ropes[0] == ropes[1]
    assert (ropes[0].kind, ropes[0].factor, ropes[0].original_max_position) == ("longrope", 4, 32)


@pytest.mark.parametrize("architecture", ["Phi3ForCausalLM", "Starcoder2ForCausalLM"])
@pytest.mark.parametrize("fields", [{}, {"sliding_window": None}, {"sliding_window": 7}])
def test_a_window_is_that_of_every_layer(
    architecture: str, fields: dict[str, object], tmp_path: Path
) -> None:
    spec = read(tmp_path, architecture, **fields)

    assert [layer.window for layer in spec.kv_layers] == [fields.get("sliding_window")] * 2


REFUSED: list[tuple[str, str, dict[str, object], str]] = [
    ("phi3 bias", "Phi3ForCausalLM", {"attention_bias": True}, "attention_bias: expected false"),
    ("phi3 head bias", "Phi3ForCausalLM", {"lm_head_bias": True}, "lm_head_bias: expected false"),
    (
        "phi3 yarn",
        "Phi3ForCausalLM",
        {"rope_scaling": {"type": "yarn", **LONGROPE}},
        "rope_scaling: expected the type default, longrope or su",
    ),
    (
        "phi3 llama3",
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "rope_parameters: expected the type default, longrope or su",
    ),
    (
        "phi3 original length",
        "Phi3ForCausalLM",
        {"rope_scaling": {"type": "longrope", **LONGROPE}},
        "original_max_position_embeddings: expected an integer.*found nothing",
    ),
    (
        "phi3 factors",
        "Phi3ForCausalLM",
        {
            "rope_scaling": {"type": "longrope", **LONGROPE},
            "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.75,
        },
        "short_factor: expected 6 numbers",
    ),
    ("phi tied", "PhiForCausalLM", {"tie_word_embeddings": True}, "tie_word_embeddings: .*false"),
    ("stablelm heads", "StableLmForCausalLM", {"head_dim": 8}, "num_attention_heads: .*heads of 8"),
    ("stablelm share", "StableLmForCausalLM", {"partial_rotary_factor": 0.2}, "even part of a hea"),
    ("neox heads", "GPTNeoXForCausalLM", {"num_key_value_heads": 2}, "num_key_value_heads: .* 4,"),
    ("neox theta", "GPTNeoXForCausalLM", {"rope_theta": 5e5}, "rope_theta: expected 10000, as of"),
    (
        "neox other share",
        "GPTNeoXForCausalLM",
        {"rotary_pct": 1.0, "partial_rotary_factor": 0.5},
        "partial_rotary_factor: expected 1, as of rotary_pct",
    ),
    ("neox share", "GPTNeoXForCausalLM", {"rotary_pct": 0}, "rotary_pct: expected a number"),
    ("starcoder2 bias", "Starcoder2ForCausalLM", {"use_bias": 1}, "use_bias: expected true or"),
    ("gpt2 cross", "GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention: .*fal"),
    ("gpt2 heads", "GPT2LMHeadModel", {"n_head": 5}, "n_head: expected a divisor of n_embd|head_d"),
    ("gpt2 activation", "GPT2LMHeadModel", {"activation_function": "mish"}, "activation_function"),
    (
        "gpt2 quantized",
        "GPT2LMHeadModel",
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config: expected nothing for GPT2LMHeadModel",
    ),
    ("gpt2 length", "GPT2LMHeadModel", {"n_positions": None}, "n_positions: expected an integer"),
]


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_what_is_not_served_is_refused(
    architecture: str, fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        read(tmp_path, architecture, **fields)

    assert str(raised.value).startswith(str(tmp_path / "config.json"))
