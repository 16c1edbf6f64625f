"""`quantize_at_load`: which layers, what the plan says of them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from parity.random_models import VOCAB_SIZE, make_random_model

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures import encodings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.quantized import int8
from quire.pipelines.architectures.quantized.at_load import ENCODINGS, quantize_at_load
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.kv_cache.memory_plan import plan_memory, weight_memory

GIB = 1024**3
HEAD = (VOCAB_SIZE, 64)


def spec_of(folder: Path, family: str = "Llama", **fields: Any) -> ModelSpec:
    make_random_model(family, **fields).config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": [f"{family}ForCausalLM"]}))
    return load_model_spec(folder)


def linear_sizes(spec: ModelSpec) -> list[tuple[int, int]]:
    """Of a Llama of `make_random_model`: q, k, v, o, gate, up and down of 3 layers."""
    return [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)] * spec.num_layers


def test_none_leaves_a_model_as_it_is(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)

    assert quantize_at_load(spec, "none", "cpu") is spec


@pytest.mark.parametrize(
    ("quantization", "bits", "bytes_per_row"),
    [("int8", 8, 4), ("w8a8", 8, 4), ("fp8", 8, 4), ("q4_0", 4.5, 0), ("q8_0", 8.5, 0)],
)
def test_the_layers_take_fewer_bytes_on_a_gpu(
    quantization: str, bits: float, bytes_per_row: int, tmp_path: Path
) -> None:
    dense = spec_of(tmp_path)
    sizes = linear_sizes(dense) + [HEAD] * (quantization in ("int8", "w8a8"))
    numbers = sum(rows * columns for rows, columns in sizes)
    others = dense.weight_bytes("bfloat16", "cuda") - 2 * numbers

    spec = quantize_at_load(dense, quantization, "cuda")

    quantized = numbers * bits / 8 + sum(rows for rows, _ in sizes) * bytes_per_row
    assert spec.weight_bytes("bfloat16", "cuda") == others + quantized
    assert spec.tensors() == dense.tensors()


def test_a_head_that_is_the_embedding_is_a_copy_in_int8(tmp_path: Path) -> None:
    dense = spec_of(tmp_path, tie_word_embeddings=True)

    spec = quantize_at_load(dense, "w8a8", "cuda")

    rows, columns = HEAD
    copy = rows * (columns + 4)
    saved = sum(rows * columns - 4 * rows for rows, columns in linear_sizes(dense))
    plain = "bfloat16", "cuda"
    assert spec.weight_bytes(*plain) == dense.weight_bytes(*plain) - saved + copy
    # A step reads the copy instead of the embedding.
    streamed = dense.streamed_weight_bytes(*plain) - saved - 2 * rows * columns + copy
    assert spec.streamed_weight_bytes(*plain) == streamed
    assert "the head is a copy of the embedding in int8" in spec.quant.notes[0]
    assert quantize_at_load(dense, "fp8", "cuda").tied_encoding is None


def test_on_a_cpu_a_tied_head_in_int8_is_the_only_copy_of_the_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "library", lambda: object())
    dense = spec_of(tmp_path, tie_word_embeddings=True)
    rows, columns = HEAD

    spec = quantize_at_load(dense, "int8", "cpu")

    sizes = [*linear_sizes(dense), HEAD]
    saved = sum(rows * columns - 4 * rows for rows, columns in sizes)
    plain = "bfloat16", "cpu"
    both = dense.weight_bytes(*plain) + 2 * rows * columns
    assert weight_memory(spec, *plain) == both - saved


@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("quantization", ["int8", "w8a8", "fp8", "q4_0", "q8_0"])
def test_on_a_cpu_the_compiled_kernels_take_all_but_fp8_as_they_are(
    quantization: str, is_built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (int8, encodings):
        monkeypatch.setattr(module, "library", lambda: object() if is_built else None)
    dense = spec_of(tmp_path)

    spec = quantize_at_load(dense, quantization, "cpu")

    sizes = linear_sizes(dense)
    saved = {
        "int8": sum(rows * columns - 4 * rows for rows, columns in [*sizes, HEAD]),
        # In groups of 32 with a float32.
        "q4_0": sum(rows * columns * 11 / 8 for rows, columns in sizes),
        "q8_0": sum(rows * columns * 7 / 8 for rows, columns in sizes),
    }
    saved["w8a8"] = saved["int8"]
    fewer = dense.weight_bytes("bfloat16", "cpu") - spec.weight_bytes("bfloat16", "cpu")
    is_packed = quantization in saved and is_built
    # Without the kernels w8a8 keeps whole numbers in float32.
    more = sum(2 * rows * columns + 4 * rows for rows, columns in sizes)
    other = -more if quantization == "w8a8" else 0
    assert fewer == (saved[quantization] if is_packed else other)
    note = "whole numbers in float32" if quantization == "w8a8" else "dequantized numbers"
    assert (note in spec.quant.notes[0]) == (not is_packed)
    assert ("memory" in spec.quant.notes[0]) == (not is_packed)


def test_the_plan_that_is_logged_says_what_is_quantized(tmp_path: Path) -> None:
    spec = quantize_at_load(spec_of(tmp_path), "fp8", "cpu")

    plan = plan_memory(
        spec, ModelSettings(), dtype="bfloat16", device_type="cpu", device_memory_bytes=GIB
    )

    numbers = sum(rows * columns for rows, columns in linear_sizes(spec))
    assert f"to fp8: 21 linear layers of {numbers} weights; embedding, norms and head are not" in (
        plan.table()
    )
    assert "a CPU computes with the dequantized numbers" in plan.table()


def test_routers_and_experts_stay_as_they_are(tmp_path: Path) -> None:
    fields = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    spec = quantize_at_load(spec_of(tmp_path, "Qwen3Moe", **fields), "int8", "cpu")

    assert "13 linear layers" in spec.quant.notes[0]
    for name in ("model.layers.0.mlp.gate", "model.layers.0.mlp.experts.0.up_proj"):
        assert spec.quant.skips(name)
    assert not spec.quant.skips("model.layers.0.self_attn.q_proj")


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    method = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    spec = spec_of(tmp_path, quantization_config=method)

    with pytest.raises(ConfigError, match="expected a checkpoint of plain numbers"):
        quantize_at_load(spec, "int8", "cpu")


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0"])
def test_a_layer_without_whole_blocks_is_refused(quantization: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, intermediate_size=72)

    with pytest.raises(ConfigError, match=f"{quantization}: .* blocks of 32 in 72 columns"):
        quantize_at_load(spec, quantization, "cpu")


def test_every_choice_of_the_setting_has_an_encoding() -> None:
    for quantization in ENCODINGS:
        assert ModelSettings(quantization=quantization).quantization == quantization
    with pytest.raises(ValueError, match="quantization"):
        ModelSettings(quantization="int4")
