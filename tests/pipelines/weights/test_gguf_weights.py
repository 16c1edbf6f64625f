"""Weights of GGUF files: names, layout and numbers, and which types are refused."""

import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from parity.driver import load_folder
from parity.gguf_writer import all_of, mixed, write_gguf
from parity.random_models import make_random_model
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from quire.config.errors import ModelError
from quire.pipelines.architectures import encodings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.quantized.gguf import BLOCK_TYPES, GgufEncoding
from quire.pipelines.nn.quantized.gguf import GgufWeight
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.gguf_blocks import dequantize_rows
from quire.pipelines.weights.loader import WeightLoader

SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
CPU = torch.device("cpu")


def open_loader(path: Path, dtype: torch.dtype = torch.float32) -> WeightLoader:
    weights = load_weights(path)
    names = match_weights(weights, load_model_spec(path))
    return WeightLoader(weights, names, dtype, CPU, lambda fraction: None)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_numbers_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    model = make_random_model("Llama")
    loader = open_loader(write_gguf(model, tmp_path / "a.gguf", all_of(kind)))

    for name, tensor in model.state_dict().items():
        assert torch.equal(loader.take(name), tensor)


def test_transformers_reads_the_same_model_of_a_file(tmp_path: Path) -> None:
    """The order of the rows of q and k too, which llama.cpp changes."""
    model = make_random_model("Llama", num_hidden_layers=2)
    path = write_gguf(model, tmp_path / "a.gguf", all_of("Q8_0"))

    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]

    assert theirs.keys() == model.state_dict().keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_blocks_stay_blocks_but_for_the_embedding(tmp_path: Path) -> None:
    model = make_random_model("Llama", **SIZES)
    path = write_gguf(model, tmp_path / "a.gguf", mixed)
    loader = open_loader(path)

    assert torch.equal(
        loader.take("model.embed_tokens.weight"), model.state_dict()["model.embed_tokens.weight"]
    )
    blocks = loader.host("model.layers.0.self_attn.q_proj.weight")
    assert blocks.dtype == torch.uint8
    assert blocks.shape == (256, BLOCK_TYPES["Q4_K"].block_bytes)
    expected = model.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(dequantize_rows(blocks, "Q4_K", torch.float32), expected)


def test_memory_is_planned_for_what_each_device_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(make_random_model("Llama", **SIZES), tmp_path / "a.gguf", mixed)

    spec = load_model_spec(path)

    entries = load_weights(path).entries
    embedding = entries["model.embed_tokens.weight"]
    norms = [entry for entry in entries.values() if len(entry.shape) == 1]
    others = sum(entry.num_bytes for entry in entries.values()) - embedding.num_bytes
    numbers = 2 * spec.embedding.num_parameters - 2 * sum(entry.shape[0] for entry in norms)
    assert spec.weight_bytes("bfloat16", "cuda") == others + numbers
    # Bytes of 32 numbers with their scale and offset, or their two scales.
    held = {"Q4_K": 16 + 8, "Q5_K": 32 + 8, "Q6_K": 32 + 8}
    matrices = [entry for entry in entries.values() if entry.dtype in held and entry != embedding]
    in_groups = sum(math.prod(entry.shape) // 32 * held[entry.dtype] for entry in matrices)
    monkeypatch.setattr(encodings, "library", lambda: object())
    plain = 2 * spec.embedding.num_parameters + 2 * sum(entry.shape[0] for entry in norms)
    assert spec.weight_bytes("bfloat16", "cpu") == in_groups + plain
    monkeypatch.setattr(encodings, "library", lambda: None)
    assert spec.weight_bytes("bfloat16", "cpu") == 2 * spec.num_parameters


def test_layers_of_unequal_types_are_not_stacked(tmp_path: Path) -> None:
    path = write_gguf(make_random_model("Llama", **SIZES), tmp_path / "a.gguf", mixed)
    spec = load_model_spec(path)
    loader = open_loader(path)

    def weight(name: str) -> GgufWeight:
        full = f"model.layers.0.{name}"
        encoding = spec.quant.encoding_of(full)
        tensors = {"weight": loader.host(f"{full}.weight")}
        return GgufWeight.from_tensors(encoding, tensors, torch.float32)

    q, k, gate, up = map(
        weight, ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj")
    )
    assert GgufWeight.stack([q, k]) is None
    stacked = GgufWeight.stack([gate, up])
    assert stacked is not None
    assert torch.equal(stacked.dense(), torch.cat([gate.dense(), up.dense()]))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_parts_and_packed_products_are_those_of_the_numbers(kind: str) -> None:
    from quire.kernels.gguf.cases import random_blocks

    generator = torch.Generator().manual_seed(0)
    blocks = random_blocks(8, 768, kind, generator)
    weight = GgufWeight.from_tensors(
        GgufEncoding(ggml_type=kind), {"weight": blocks}, torch.float32
    )
    numbers = torch.from_numpy(
        gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])
    )

    assert torch.equal(weight.dense(), numbers)
    part = weight.select([slice(4, 6), slice(0, 1)], slice(256, 768))
    assert torch.equal(part.dense(), numbers[[4, 5, 0], 256:])
    with pytest.raises(ValueError, match="columns"):
        weight.select([slice(0, 8)], slice(0, 20))
    x, bias = torch.randn(3, 768, generator=generator), torch.randn(8, generator=generator)
    y = weight.apply_packed(bias, CPU)(x)
    assert torch.allclose(y, x @ numbers.T + bias, atol=1e-4)


def test_long_weights_are_dequantized_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.kernels.gguf.cases import random_blocks

    blocks = random_blocks(7, 256, "Q6_K", torch.Generator().manual_seed(0))
    whole = dequantize_rows(blocks, "Q6_K", torch.bfloat16)

    monkeypatch.setattr("quire.pipelines.weights.gguf_blocks._NUMBERS_AT_ONCE", 512)

    assert torch.equal(dequantize_rows(blocks, "Q6_K", torch.bfloat16), whole)


@pytest.mark.parametrize("kind", ["Q8_1", "IQ2_XS", "MXFP4", "TQ1_0", "F64", "I8"])
def test_other_types_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rows = np.zeros((256, 256 // elements * size), np.uint8)

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_gate.weight", rows, raw_dtype=gguf.GGMLQuantizationType[kind])

    model = make_random_model("Llama", **SIZES)
    path = write_without(model, tmp_path / "a.gguf", "blk.0.ffn_gate.weight", edit)

    with pytest.raises(
        ModelError,
        match=(
            "a.gguf: blk.0.ffn_gate.weight: expected one of the ggml types F32, BF16, F16, "
            f"Q4_0, .*Q5_1, .*Q6_K, .*IQ4_XS, found {kind}$"
        ),
    ):
        load_model_spec(path)


def write_without(
    model: transformers.PreTrainedModel,
    path: Path,
    name: str,
    edit: Callable[[gguf.GGUFWriter], None],
) -> Path:
    """The model with the tensor `name` replaced by what `edit` adds."""

    def replace(writer: gguf.GGUFWriter) -> None:
        edit(writer)
        add = writer.add_tensor

        def others(given: str, *args: object, **options: object) -> None:
            if given != name:
                add(given, *args, **options)  # type: ignore[arg-type]

        writer.add_tensor = others  # type: ignore[method-assign,assignment]

    return write_gguf(model, path, all_of("F32"), edit=replace)


def nothing(writer: gguf.GGUFWriter) -> None:
    """Leave the tensor out."""


def other_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))


def other_name(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.attn_sinks.weight", np.ones(32, np.float32))


def packed_norm(writer: gguf.GGUFWriter) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quants.quantize(np.ones((1, 64), np.float32), kind)[0]
    writer.add_tensor("output_norm.weight", blocks, raw_dtype=kind)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "output_norm.weight",
            nothing,
            r"model.norm.weight: expected a tensor \[64\], found nothing",
        ),
        (
            "output_norm.weight",
            other_shape,
            r"output_norm.weight: expected shape \[64\], found \[32\]",
        ),
        (
            "output_norm.weight",
            packed_norm,
            "output_norm.weight: expected dtype F32, BF16, F16, found Q8_0",
        ),
        ("", other_name, "blk.0.attn_sinks.weight: expected no such tensor in LlamaForCausalLM"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    name: str, edit: Callable[[gguf.GGUFWriter], None], message: str, tmp_path: Path
) -> None:
    path = write_without(make_random_model("Llama"), tmp_path / "a.gguf", name, edit)

    with pytest.raises(ModelError, match=message):
        match_weights(load_weights(path), load_model_spec(path))


def test_a_folder_of_gguf_files_is_refused(tmp_path: Path) -> None:
    write_gguf(make_random_model("Llama"), tmp_path / "a.gguf", all_of("F32"))

    with pytest.raises(ModelError, match="give the .gguf file itself"):
        load_weights(tmp_path)


def test_a_quantized_model_is_served_in_bfloat16(tmp_path: Path) -> None:
    path = write_gguf(make_random_model("Llama", **SIZES), tmp_path / "a.gguf", mixed)

    assert load_folder(path).dtype == "bfloat16"
