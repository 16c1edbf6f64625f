"""What a GGUF file's metadata says of the model; logits are compared in tests/parity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_tokenizers import add_byte_level, byte_level
from parity.gguf_writer import ARCHITECTURES, all_of, write_gguf
from parity.random_models import make_random_model

from quire.config.errors import ModelError
from quire.pipelines.architectures.gguf_config import _ROWS
from quire.pipelines.architectures.load import config_bytes, load_model_spec
from quire.pipelines.architectures.registry import ARCHITECTURES as REGISTRY
from quire.pipelines.architectures.sampling_defaults import load_sampling_defaults
from quire.pipelines.tokenizer import TextTokenizer
from quire.pipelines.weights.gguf_names import GGUF_NAMES

Edit = Callable[[gguf.GGUFWriter], None]


def save(path: Path, edit: Edit | None = None, kind: str = "F32", **fields: Any) -> Path:
    model = make_random_model("Llama", num_hidden_layers=1, **fields)
    return write_gguf(model, path, all_of(kind), edit=edit)


def test_every_architecture_has_names_and_a_test() -> None:
    assert _ROWS.keys() == GGUF_NAMES.keys()
    assert {gguf.MODEL_ARCH_NAMES[arch] for arch in ARCHITECTURES.values()} == _ROWS.keys()


NOT_IN_PACKAGE = {
    "qwen3moe": {"blk.2.ffn_gate", "blk.2.ffn_up", "blk.2.ffn_down"},
    "gemma": {"output"},
    "gemma2": {"output"},
}
"""Layers without experts, and heads of models that are tied as released."""


@pytest.mark.parametrize("arch", sorted(GGUF_NAMES))
def test_names_are_those_of_the_gguf_package(arch: str) -> None:
    (number,) = (kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names, table = GGUF_NAMES[arch], gguf.get_tensor_name_map(number, 3)
    found = {
        f"blk.2.{module}": names.to_hugging_face(f"blk.2.{module}.weight") for module in names.block
    }
    found |= {
        name.removesuffix(".weight"): names.to_hugging_face(name)
        for name in names.outer
        if name.endswith(".weight")
    }

    for name, checkpoint_name in found.items():
        module = checkpoint_name.removesuffix(".weight").replace("experts.{expert}", "experts")
        known = table.get_name(module)
        assert known == (None if name in NOT_IN_PACKAGE.get(arch, ()) else name)


def test_sizes_are_read(tmp_path: Path) -> None:
    spec = load_model_spec(save(tmp_path / "a.gguf", head_dim=24, num_key_value_heads=1))

    assert spec.architecture == "LlamaForCausalLM"
    assert (spec.vocab_size, spec.hidden_size, spec.num_layers) == (211, 64, 1)
    assert spec.kv_layers[0].key_dim == 24
    assert spec.max_position_embeddings == 160
    assert not spec.tie_word_embeddings
    assert spec.bos_token_id == 1
    assert spec.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")],
)
def test_the_dtype_is_that_of_most_numbers(kind: str, dtype: str, tmp_path: Path) -> None:
    assert load_model_spec(save(tmp_path / "a.gguf", kind=kind)).checkpoint_dtype == dtype


def test_the_vocabulary_is_as_long_as_the_list_of_tokens(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0]["llama.vocab_size"]
        add_byte_level(writer, "smollm")

    path = save(tmp_path / "a.gguf", edit, vocab_size=406)

    assert load_model_spec(path).vocab_size == byte_level("smollm").get_vocab_size() == 406


def test_ends_are_the_named_ids_and_the_known_control_tokens(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, "smollm")
        writer.add_eot_token_id(7)

    spec = load_model_spec(save(tmp_path / "a.gguf", edit, vocab_size=406))

    ids = byte_level("smollm").get_vocab(with_added_tokens=True)
    assert spec.eos_token_ids == (ids["<|im_end|>"], 7, ids["<|end_of_text|>"])


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_the_end_of_a_turn_ends_it_whatever_type_it_has(kind: int, tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, "smollm")
        values = writer.kv_data[0]
        tokens = values["tokenizer.ggml.tokens"].value
        values["tokenizer.ggml.eos_token_id"].value = 7
        values["tokenizer.ggml.token_type"].value[tokens.index("<|im_end|>")] = kind
        values["tokenizer.ggml.tokens"].value = ["</s>", *tokens[1:]]

    path = save(tmp_path / "a.gguf", edit, vocab_size=406)

    ids = byte_level("smollm").get_vocab(with_added_tokens=True)
    assert sorted(load_model_spec(path).eos_token_ids) == sorted(
        [7, ids["<|im_end|>"], ids["<|end_of_text|>"]]
    )
    tokenizer = TextTokenizer.from_folder(path)
    assert tokenizer.encode("a<|im_end|>", False)[-1] == ids["<|im_end|>"]
    assert ids["<|im_end|>"] in tokenizer.special_token_ids


def test_keys_of_a_vision_tower_say_nothing_of_the_text(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("llama.vision.block_count", 27)
        writer.add_uint32("llama.mm.tokens_per_image", 256)

    assert load_model_spec(save(tmp_path / "a.gguf", edit)).num_layers == 1


def add(kind: str, key: str, value: object) -> Edit:
    return lambda writer: getattr(writer, f"add_{kind}")(key, value)


def drop(key: str) -> Edit:
    return lambda writer: writer.kv_data[0].pop(key)  # type: ignore[return-value]


def replace(key: str, value: object) -> Edit:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][key].value = value

    return edit


def add_factors(*factors: float) -> Edit:
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


REFUSED: list[tuple[Edit, str]] = [
    (
        replace("general.architecture", "mamba"),
        'general.architecture: expected one of llama, qwen2, .*, found "mamba"',
    ),
    (add("string", "general.type", "adapter"), 'general.type: expected model, found "adapter"'),
    (drop("llama.context_length"), "llama.context_length: expected an integer of at least 1"),
    (drop("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon: expected a number"),
    (replace("llama.embedding_length", 0), "llama.embedding_length: expected an integer"),
    (replace("llama.block_count", 2**31), "llama.block_count: expected at most 12, the number"),
    (replace("llama.attention.key_length", 20), "attention.value_length: expected 20"),
    (replace("llama.rope.dimension_count", 8), "rope.dimension_count: expected the 16 numbers"),
    (add("float32", "llama.logit_scale", 2.0), "llama.logit_scale: expected no such key of llama"),
    (add("bool", "llama.attention.causal", False), "llama.attention.causal: expected true"),
    (
        add("string", "llama.rope.scaling.type", "ntk"),
        "rope.scaling.type: expected none, linear, yarn or longrope",
    ),
    (
        add("string", "llama.rope.scaling.type", "yarn"),
        "llama.rope.scaling.factor: expected a number greater than 0, found nothing",
    ),
    (
        add("string", "llama.rope.scaling.type", "longrope"),
        "rope.scaling.original_context_length: expected an integer",
    ),
    (add_factors(1.0, 2.0), "short_factor: expected 8 numbers"),
    (add_factors(*[0.0] * 8), "rope_freqs.weight: expected numbers greater than 0"),
    (add_factors(*[float("nan")] * 8), "rope_freqs.weight: expected numbers greater than 0"),
    (add_factors(*[1.0] * 17), r"rope_freqs.weight: expected F32 \[8\], found F32 \[17\]"),
]


@pytest.mark.parametrize(("edit", "message"), REFUSED)
def test_what_is_wrong_or_not_supported_is_refused(
    edit: Edit, message: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.gguf", edit)

    with pytest.raises(ModelError, match=message) as caught:
        load_model_spec(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_factors_beside_another_scaling_are_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        add("string", "llama.rope.scaling.type", "linear")(writer)
        add_factors(*[1.0] * 8)(writer)

    with pytest.raises(ModelError, match="rope.scaling.type: expected none beside rope_freqs"):
        load_model_spec(save(tmp_path / "a.gguf", edit))


def test_an_architecture_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    others = [row for row in REGISTRY if row.name != "LlamaForCausalLM"]

    with pytest.raises(ModelError, match="architectures: expected one of .*LlamaForCausalLM"):
        load_model_spec(save(tmp_path / "a.gguf"), others)


def test_keys_that_say_nothing_are_read_past(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_finetuned(True)
        writer.add_uint32("llama.expert_count", 0)
        writer.add_file_type(7)

    load_model_spec(save(tmp_path / "a.gguf", edit))


def test_the_configuration_is_the_whole_header(tmp_path: Path) -> None:
    first = config_bytes(save(tmp_path / "a.gguf"))
    second = config_bytes(save(tmp_path / "b.gguf", lambda writer: writer.add_name("other")))

    assert first == (tmp_path / "a.gguf").read_bytes()[: len(first)]
    assert first != second


def test_sampling_defaults_are_read(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 40)

    assert load_sampling_defaults(save(tmp_path / "a.gguf")) == {}
    assert load_sampling_defaults(save(tmp_path / "b.gguf", edit)) == {
        "temperature": 0.5,
        "top_k": 40,
    }
