"""`load_model_spec` against the configurations transformers writes, and against broken ones."""

import json
from pathlib import Path

import pytest
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from quire.config.errors import ConfigError, ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.spec import ModelSpec

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

MODELS: list[tuple[type[PreTrainedModel], PreTrainedConfig]] = [
    (LlamaForCausalLM, LlamaConfig(**SIZES)),
    (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=16)),
    (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=24)),
    (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=24, attention_bias=True)),
    (MistralForCausalLM, MistralConfig(**SIZES)),
]

VALID = {"architectures": ["LlamaForCausalLM"], **SIZES, "rms_norm_eps": 1e-5}


def write(folder: Path, config: dict[str, object], name: str = "config.json") -> Path:
    (folder / name).write_text(json.dumps(config))
    return folder


def windows_of(spec: ModelSpec) -> tuple[int | None, ...]:
    return tuple(layer.window for layer in spec.kv_layers)


@pytest.mark.parametrize(("model_class", "config"), MODELS)
def test_names_and_shapes_are_those_of_transformers(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, tmp_path: Path
) -> None:
    model = model_class(config)
    config.architectures = [model_class.__name__]
    config.save_pretrained(tmp_path)

    spec = load_model_spec(tmp_path)

    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shapes = {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied
    }
    assert {name: tensor.shape for name, tensor in spec.tensors().items()} == shapes
    assert spec.num_parameters == model.num_parameters()
    assert spec.weight_bytes("bfloat16") == 2 * model.num_parameters()
    assert spec.final_norm.epsilon == config.rms_norm_eps
    assert spec.max_position_embeddings == 128
    # Keys and values, layers, heads, head_dim, bytes.
    assert spec.kv_bytes_per_token("float32") == 2 * 3 * 2 * spec.kv_layers[0].key_dim * 4


def test_the_weights_dominate_the_flops_of_a_token(tmp_path: Path) -> None:
    spec = load_model_spec(write(tmp_path, VALID))
    matrices = spec.num_parameters - 61 * 32

    assert spec.flops_per_token(0) == 2 * matrices
    assert spec.flops_per_token(10) - spec.flops_per_token(0) == 3 * 4 * 10 * 4 * 8


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (MistralConfig(**SIZES, sliding_window=7), (7, 7, 7)),
        (MistralConfig(**SIZES, sliding_window=None), (None, None, None)),
        (Qwen2Config(**SIZES, sliding_window=7), (None, None, None)),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=1),
            (None, 7, 7),
        ),
        (
            Qwen3Config(
                **SIZES,
                use_sliding_window=True,
                sliding_window=7,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
            (7, None, 7),
        ),
    ],
)
def test_sliding_windows_are_per_layer(
    config: PreTrainedConfig, windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    name = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.model_type]
    config.architectures = [f"{name}ForCausalLM"]
    config.save_pretrained(tmp_path)

    assert windows_of(load_model_spec(tmp_path)) == windows


def test_max_window_layers_counts_without_layer_types(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    config = {**VALID, "architectures": ["Qwen2ForCausalLM"], **window}

    assert windows_of(load_model_spec(write(tmp_path, config))) == (None, None, 9)


def test_eos_ids_of_both_files_are_joined(tmp_path: Path) -> None:
    write(tmp_path, {**VALID, "bos_token_id": 1, "eos_token_id": 2})
    write(tmp_path, {"eos_token_id": [5, 2]}, "generation_config.json")

    spec = load_model_spec(tmp_path)

    assert spec.bos_token_id == 1
    assert spec.eos_token_ids == (2, 5)


@pytest.mark.parametrize(
    ("fields", "requested", "device", "dtype"),
    [
        ({"dtype": "bfloat16"}, "auto", "cpu", "bfloat16"),
        ({"torch_dtype": "float16"}, "auto", "cuda", "float16"),
        ({"torch_dtype": "float16"}, "auto", "cpu", "float32"),
        ({"dtype": "bfloat16"}, "float32", "cpu", "float32"),
        ({}, "auto", "cuda", "float32"),
    ],
)
def test_dtype_auto_keeps_the_checkpoints_except_half_on_a_cpu(
    fields: dict[str, object], requested: str, device: str, dtype: str, tmp_path: Path
) -> None:
    spec = load_model_spec(write(tmp_path, {**VALID, **fields}))

    assert spec.serving_dtype(requested, device) == dtype


def test_half_precision_is_refused_on_a_cpu(tmp_path: Path) -> None:
    spec = load_model_spec(write(tmp_path, VALID))

    with pytest.raises(ConfigError, match="dtype float16 is not served on a CPU"):
        spec.serving_dtype("float16", "cpu")


def test_old_and_new_rope_keys_mean_the_same(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    old = {**VALID, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}
    new = {**VALID, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}}

    read = [
        load_model_spec(write(tmp_path, config)).layers[0].attention.rope for config in (old, new)
    ]

    assert read[0] == read[1]
    assert (read[0].kind, read[0].theta, read[0].original_max_position) == ("llama3", 5e5, 64)


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.M"}
    config = {**VALID, "auto_map": auto_map, "trust_remote_code": True}

    assert load_model_spec(write(tmp_path, config)).architecture == "LlamaForCausalLM"
    assert not marker.exists()


BROKEN: list[tuple[str, dict[str, object], str]] = [
    ("architecture", {"architectures": ["BloomForCausalLM"]}, "Qwen3ForCausalLM.*BloomForCausalLM"),
    ("no architecture", {"architectures": None}, "architectures: expected a list.*nothing"),
    ("missing", {"hidden_size": None}, "hidden_size: expected an integer.*found nothing"),
    ("mistyped", {"num_hidden_layers": "3"}, 'num_hidden_layers: expected an integer.*found "3"'),
    ("boolean count", {"vocab_size": True}, "vocab_size: expected an integer.*found true"),
    ("zero", {"intermediate_size": 0}, "intermediate_size: expected.*at least 1, found 0"),
    ("epsilon", {"rms_norm_eps": 0}, "rms_norm_eps: expected a number greater than 0, found 0"),
    ("activation", {"hidden_act": "mish"}, 'hidden_act: expected one of .*, found "mish"'),
    ("heads", {"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of 4"),
    ("odd head", {"head_dim": 12}, "head_dim: expected a multiple of 8 up to 256, found 12"),
    ("wide head", {"head_dim": 264}, "head_dim: expected a multiple of 8 up to 256, found 264"),
    ("dtype", {"torch_dtype": "int8"}, 'torch_dtype: expected float32.*found "int8"'),
    ("tie", {"tie_word_embeddings": "yes"}, 'tie_word_embeddings: expected true.*found "yes"'),
    (
        "quantized",
        {"quantization_config": {"bits": 4}},
        "quant_method: expected a string, found no",
    ),
    ("eos", {"eos_token_id": "</s>"}, 'eos_token_id: expected a token id.*found "</s>"'),
    ("rope kind", {"rope_scaling": {"type": "mrope"}}, 'type: expected one of.*found "mrope"'),
    ("rope factor", {"rope_scaling": {"type": "linear"}}, "factor: expected a number.*nothing"),
    (
        "partial",
        {"architectures": ["GlmForCausalLM"], "partial_rotary_factor": 0.04},
        "partial_rotary_factor: expected an even part of a head",
    ),
    (
        "partial of whole heads",
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor: expected 1: this architecture turns whole heads, found 0.5",
    ),
    (
        "partial in a section",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rope_parameters: partial_rotary_factor: expected 1",
    ),
    (
        "two ropes",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        "rope_scaling: expected nothing beside rope_parameters",
    ),
    (
        "ropes by kind",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters: full_attention: expected nothing",
    ),
    (
        "window",
        {"architectures": ["MistralForCausalLM"]},
        "sliding_window: expected an integer.*found nothing",
    ),
    (
        "layer types",
        {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 3},
        "layer_types: expected 3 of full_attention",
    ),
]


@pytest.mark.parametrize(("fields", "message"), [case[1:] for case in BROKEN])
def test_a_wrong_key_is_named_with_expected_and_found(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        load_model_spec(write(tmp_path, {**VALID, **fields}))

    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file not found"),
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "expected a JSON object, found a list"),
    ],
)
def test_a_config_that_is_no_json_object_is_named(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)

    with pytest.raises(ModelError, match=message):
        load_model_spec(tmp_path)
