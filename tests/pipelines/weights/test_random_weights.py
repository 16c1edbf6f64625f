"""Weights made up from config.json: the same each time, finite, and of every type a spec can name."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from parity.driver import Driver, load_folder
from parity.families.quantized import METHODS
from transformers import LlamaConfig

from quire.config.errors import ConfigError, ModelError
from quire.pipelines.architectures.encodings import TensorSpec
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.random_weights import RandomWeights
from quire.pipelines.weights.safetensors_header import read_header
from quire.pipelines.weights.safetensors_weights import TORCH_DTYPES

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}


def write_config(folder: Path, **fields: object) -> Path:
    values = {**SIZES, "attention_bias": True, **fields}
    config = LlamaConfig(**values)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def weights_of(**specs: TensorSpec) -> RandomWeights:
    return RandomWeights(Path("config.json"), specs, TORCH_DTYPES)


def test_a_folder_with_only_a_config_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_config(tmp_path, dtype="float32")

    with caplog.at_level(logging.WARNING):
        loaded = load_folder(tmp_path, load_format="random")
    (logits,) = Driver(loaded).logits([[1, 2, 3, 4]], [[(0, 4)]])

    assert "weights are random" in caplog.text
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_weights_are_normal_norms_one_biases_zero_and_all_match(tmp_path: Path) -> None:
    spec = load_model_spec(write_config(tmp_path))
    weights = load_weights(tmp_path, spec, "random")

    assert match_weights(weights, spec) == list(spec.tensors())
    embedding = weights.read("model.embed_tokens.weight")
    assert embedding.shape == (101, 64)
    assert abs(float(embedding.mean())) < 1e-3
    assert abs(float(embedding.std()) - 0.02) < 1e-3
    assert torch.equal(weights.read("model.norm.weight"), torch.ones(64))
    assert not weights.read("model.layers.0.self_attn.q_proj.bias").any()
    # By name, so that layers differ and every process makes the same.
    names = [f"model.layers.{index}.mlp.up_proj.weight" for index in range(2)]
    first, second = (weights.read(name) for name in names)
    assert not torch.equal(first, second)
    again = load_weights(tmp_path, spec, "random").read(names[0])
    assert torch.equal(first, again)


def all_formats() -> list[str]:
    """Every type of safetensors, of ours and not."""
    return [*TORCH_DTYPES, "F8_E5M2", "I16", "U16", "U32", "U64", "BOOL", "F4", "Q4_K"]


@pytest.mark.parametrize("name", all_formats())
@pytest.mark.parametrize("shape", [(), (0,), (5,), (4, 32)])
def test_every_type_is_made(name: str, shape: tuple[int, ...]) -> None:
    spec = TensorSpec(shape, (name,))
    weights = weights_of(weight=spec, weight_scale=spec, bias=spec, qweight=spec)

    for key, entry in weights.entries.items():
        tensor = weights.read(key)
        assert tensor.shape == shape
        assert tensor.dtype == TORCH_DTYPES.get(name, torch.uint8)
        assert entry.num_bytes == tensor.numel() * tensor.element_size()
        assert (entry.dtype, entry.shape) == (name, shape)
        if tensor.dtype.is_floating_point:
            assert tensor.float().isfinite().all()


def test_scales_are_small_and_positive() -> None:
    for dtype in ("F32", "BF16", "F16", "F8_E4M3", "F8_E8M0"):
        spec = TensorSpec((64, 8), (dtype,))
        scales = weights_of(**{"up.weight_scale_inv": spec}).read("up.weight_scale_inv").float()
        assert ((scales >= 2.0**-9) & (scales <= 2.0**-7)).all()
        assert len(scales.unique()) > 1
    exponents = weights_of(w_scales=TensorSpec((64,), ("U8",))).read("w_scales")
    assert set(exponents.tolist()) == {118, 119, 120}


def test_packed_integers_use_all_bits_and_optional_tensors_are_left_out() -> None:
    packed = TensorSpec((64, 64), ("I32",))
    weights = weights_of(qweight=packed, other=dataclasses.replace(packed, is_optional=True))

    assert weights.entries.keys() == {"qweight"}
    values = weights.read("qweight")
    assert values.min() < -(2**30) and values.max() > 2**30
    assert len(values.unique()) > 4000


@pytest.mark.parametrize("name", METHODS)
def test_quantized_models_are_made_up_too(tmp_path: Path, name: str) -> None:
    method = METHODS[name]
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "vocab_size": 104,
    }
    path = write_config(tmp_path, dtype="bfloat16", **sizes) / "config.json"
    if method.config:
        config = {**json.loads(path.read_text()), "quantization_config": method.config}
        path.write_text(json.dumps(config))
    if method.own_file:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(method.own_file))

    loaded = load_folder(tmp_path, load_format="random")
    (logits,) = Driver(loaded).logits([[1, 2, 3, 4]], [[(0, 4)]])

    assert loaded.spec.quant.encoding.name != "dense"
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_a_type_that_can_be_read_is_preferred() -> None:
    weights = weights_of(weight=TensorSpec((2, 2), ("Q4_K", "F8_E4M3", "F32")))

    assert weights.entries["weight"].dtype == "F8_E4M3"


def test_other_formats_than_what_is_there_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    for load_format in ("safetensors", "gguf", "pytorch"):
        with pytest.raises(ModelError, match=f"expected {load_format} weights, found none"):
            load_weights(tmp_path, None, load_format)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="for decoders only"):
        load_weights(tmp_path, None, "random")


def test_a_config_is_still_checked(tmp_path: Path) -> None:
    write_config(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": None}))

    with pytest.raises(ModelError, match="hidden_size"):
        load_folder(tmp_path, load_format="random")


def test_the_benchmark_folder_can_be_saved(tmp_path: Path) -> None:
    """What `RandomWeights` gives is what safetensors can hold."""
    from safetensors.torch import save_file

    spec = load_model_spec(write_config(tmp_path))
    weights = load_weights(tmp_path, spec, "random")
    save_file(
        {name: weights.read(name) for name in weights.entries}, tmp_path / "model.safetensors"
    )

    assert read_header(tmp_path / "model.safetensors").keys() == spec.tensors().keys()
