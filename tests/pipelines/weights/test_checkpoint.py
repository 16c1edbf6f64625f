"""Checkpoints: whole ones are found and read, broken ones refused with file and key."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.loader import WeightLoader
from quire.pipelines.weights.safetensors_header import read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
KEY = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def save(folder: Path, max_shard_size: str = "1GB", **fields: object) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, vocab_size=61, num_attention_heads=4, **fields)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def open_loader(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[WeightLoader, list[str]]:
    weights = load_weights(folder)
    names = match_weights(weights, load_model_spec(folder))
    return WeightLoader(weights, names, dtype, torch.device("cpu"), progress), names


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    loader, names = open_loader(folder, dtype)
    weights = {name: loader.take(name) for name in names}
    loader.finish()
    return weights


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("max_shard_size", ["1GB", "12KB"])
def test_every_weight_equals_what_the_safetensors_library_reads(
    max_shard_size: str, tmp_path: Path
) -> None:
    save(tmp_path, max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "12KB")

    weights = load(tmp_path)

    expected = saved_tensors(tmp_path)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_converted_to_the_serving_dtype(stored: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path)
    tensors = {name: tensor.to(stored) for name, tensor in saved_tensors(tmp_path).items()}
    save_file(tensors, tmp_path / SINGLE)

    for name, tensor in load(tmp_path, torch.bfloat16).items():
        assert torch.equal(tensor, tensors[name].to(torch.bfloat16))


@pytest.mark.parametrize("has_library", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_matrix_in_blocks_is_the_matrix(
    stored: torch.dtype, has_library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.pipelines.weights.loader.BLOCK_BYTES", 300)
    if not has_library:
        monkeypatch.setattr("quire.pipelines.weights.loader.library", lambda: None)
        monkeypatch.setattr("quire.pipelines.weights.file_reader.library", lambda: None)
    tensors = {"m": torch.randn(33, 20).to(stored), "v": torch.ones(3)}
    save_file(tensors, tmp_path / SINGLE)
    fractions: list[float] = []
    weights = load_weights(tmp_path)
    loader = WeightLoader(weights, tensors, torch.float32, torch.device("cpu"), fractions.append)

    blocks = list(loader.blocks("m"))

    assert len(blocks) > 4
    assert torch.equal(torch.cat(blocks), tensors["m"].float())
    assert "m" not in loader
    loader.take("v")
    assert (fractions, fractions[-1]) == (sorted(fractions), 1.0)
    loader.finish()


@pytest.mark.parametrize("has_library", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found_anywhere(
    dtype: torch.dtype, has_library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_library:
        monkeypatch.setattr("quire.pipelines.weights.loader.library", lambda: None)
    greatest = torch.full((333, 211), torch.finfo(dtype).max, dtype=dtype)
    greatest[::2] *= -1
    for place, value in ((None, 0.0), (0, "nan"), (40_000, "inf"), (70_262, "-inf")):
        numbers = greatest.clone()
        if place is not None:
            numbers.view(-1)[place] = float(value)
        save_file({"m": numbers}, tmp_path / SINGLE)
        loader = WeightLoader(load_weights(tmp_path), ["m"], dtype, torch.device("cpu"), [].append)
        if place is None:
            assert torch.equal(loader.host("m"), greatest)
            continue
        with pytest.raises(ModelError, match="m: expected finite values, found NaN or infinity"):
            loader.host("m")


def test_progress_reaches_one_and_a_weight_left_over_is_noticed(tmp_path: Path) -> None:
    save(tmp_path)
    fractions: list[float] = []
    loader, names = open_loader(tmp_path, progress=fractions.append)

    with pytest.raises(AssertionError, match="did not take model.embed_tokens.weight"):
        loader.finish()
    for name in names:
        assert name in loader
        loader.take(name)

    assert name not in loader
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_buffers_of_old_versions_and_a_tied_head_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=True)
    tensors = saved_tensors(tmp_path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for buffer in ("inv_freq", "cos_cached", "sin_cached"):
        tensors[f"model.layers.0.self_attn.rotary_emb.{buffer}"] = torch.ones(4)
    save_file(tensors, tmp_path / SINGLE)

    assert load(tmp_path).keys() == load_model_spec(tmp_path).tensors().keys()


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        tensors = saved_tensors(folder)
        change(tensors)
        save_file(tensors, folder / SINGLE)

    return edit


def edit_header(
    change: Callable[[dict[str, dict[str, object]]], object],
) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content = (folder / SINGLE).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / SINGLE).write_bytes(
            len(text).to_bytes(8, "little") + text + content[8 + length :]
        )

    return edit


def poison(tensor: torch.Tensor, value: float) -> None:
    tensor.view(-1)[3] = value


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (
        lambda folder: (folder / SINGLE).rename(folder / "pytorch_model.bin"),
        f"expected {SINGLE} or {INDEX}, found neither; pytorch_model.bin is a pickle",
    ),
    "empty file": (
        lambda folder: (folder / SINGLE).write_bytes(b""),
        "model.safetensors: header length: expected .* file of 0 bytes, found 0",
    ),
    "truncated data": (
        lambda folder: os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 5),
        r"model.safetensors: .*weight: expected a file of \d+ bytes, found \d+ bytes",
    ),
    "truncated header": (
        lambda folder: os.truncate(folder / SINGLE, 100),
        "model.safetensors: header length: expected 2 to 92 bytes",
    ),
    "trailing bytes": (
        lambda folder: (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes() + b"xx"),
        r"model.safetensors: .*: expected a file of \d+ bytes, found \d+ bytes",
    ),
    "huge header length": (
        lambda folder: (folder / SINGLE).write_bytes(b"\xff" * 64),
        "model.safetensors: header length: expected 2 to 56 bytes",
    ),
    "header no JSON": (
        lambda folder: (folder / SINGLE).write_bytes(bytes([9, *[0] * 7]) + b"{" * 9),
        "model.safetensors: header: expected JSON",
    ),
    "header no object": (
        lambda folder: (folder / SINGLE).write_bytes(bytes([2, *[0] * 7]) + b"[]"),
        "model.safetensors: header: expected a JSON object",
    ),
    "no offsets": (
        edit_header(lambda header: header[KEY].pop("data_offsets")),
        f"model.safetensors: {KEY}: expected dtype, shape and data_offsets",
    ),
    "negative shape": (
        edit_header(lambda header: header[KEY].update(shape=[-48, -32])),
        f"model.safetensors: {KEY}: expected dtype, shape and data_offsets.*>= 0",
    ),
    "size of shape": (
        edit_header(lambda header: header[KEY].update(shape=[48, 33])),
        rf"model.safetensors: {KEY}: expected 6336 bytes for F32 \[48, 33\]",
    ),
    "overlapping data": (
        edit_header(lambda header: header.update({"twin": header[KEY]})),
        r"model.safetensors: \S+: expected data at byte \d+, found byte \d+",
    ),
    "missing key": (
        edit_tensors(lambda tensors: tensors.pop(KEY)),
        rf"model.safetensors: {KEY}: expected a tensor \[48, 32\], found nothing",
    ),
    "wrong shape": (
        edit_tensors(lambda tensors: tensors.update({KEY: torch.zeros(32, 48)})),
        rf"model.safetensors: {KEY}: expected shape \[48, 32\], found \[32, 48\]",
    ),
    "left over": (
        edit_tensors(lambda tensors: tensors.update({"model.extra": torch.zeros(2)})),
        r"model.safetensors: model.extra: expected no such tensor in LlamaForCausalLM, found \[2\]",
    ),
    "bias left over": (
        edit_tensors(
            lambda tensors: tensors.update({KEY.replace("weight", "bias"): torch.zeros(48)})
        ),
        "model.safetensors: model.layers.1.mlp.up_proj.bias: expected no such tensor",
    ),
    "integer weights": (
        edit_tensors(lambda tensors: tensors.update({KEY: tensors[KEY].to(torch.int8)})),
        f"model.safetensors: {KEY}: expected dtype F32, BF16, F16, found I8",
    ),
    "NaN in a norm": (
        edit_tensors(lambda tensors: poison(tensors["model.norm.weight"], float("nan"))),
        "model.safetensors: model.norm.weight: expected finite values.*found NaN or infinity",
    ),
    "infinity in the embedding": (
        edit_tensors(lambda tensors: poison(tensors["model.embed_tokens.weight"], float("inf"))),
        "model.safetensors: model.embed_tokens.weight: expected finite values",
    ),
    "zeros where a file was": (
        lambda folder: (folder / SINGLE).write_bytes(bytes((folder / SINGLE).stat().st_size)),
        r"model.safetensors: header length: expected 2 to \d+ bytes .*found 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_file_and_key(name: str, tmp_path: Path) -> None:
    damage, message = BROKEN[name]
    damage(save(tmp_path))

    with pytest.raises(ModelError, match=message) as raised:
        load(tmp_path)

    assert str(raised.value).startswith(str(tmp_path))
    assert "\n" not in str(raised.value)


def edit_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return edit


BROKEN_SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard missing": (
        lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(),
        r"model-00002-of-\d+.safetensors: file not found",
    ),
    "shard truncated": (
        lambda folder: os.truncate(sorted(folder.glob("*.safetensors"))[2], 2000),
        r"model-00003-of-\d+.safetensors: .*: expected",
    ),
    "shard of another model": (
        lambda folder: min(folder.glob("*-00001-*")).rename(min(folder.glob("*-00002-*"))),
        r"model-0000\d-of-\d+.safetensors: ",
    ),
    "key of no shard": (
        edit_index(lambda weights: weights.update({"ghost": weights[KEY]})),
        r"model-\d+-of-\d+.safetensors: ghost: expected the tensor .* lists, found nothing",
    ),
    "key not listed": (
        edit_index(lambda weights: weights.pop(NORM)),
        f"{NORM}: expected {INDEX} to list it here, found nothing",
    ),
    "path outside": (
        edit_index(lambda weights: weights.update({KEY: "../model.safetensors"})),
        f"{INDEX}: weight_map: expected a .safetensors file name, found '../model.safetensors'",
    ),
    "shard name no string": (
        edit_index(lambda weights: weights.update({KEY: 7})),  # type: ignore[dict-item]
        f"{INDEX}: weight_map: {KEY}: expected a string, found 7",
    ),
    "no weight map": (
        lambda folder: (folder / INDEX).write_text("{}"),
        f"{INDEX}: weight_map: expected a JSON object, found nothing",
    ),
}


@pytest.mark.parametrize("name", BROKEN_SHARDS)
def test_broken_shards_are_refused_with_file_and_key(name: str, tmp_path: Path) -> None:
    damage, message = BROKEN_SHARDS[name]
    damage(save(tmp_path, max_shard_size="12KB"))

    with pytest.raises(ModelError, match=message) as raised:
        load(tmp_path)

    assert str(raised.value).startswith(str(tmp_path))


def test_a_file_that_shrinks_after_the_check_is_an_error_not_a_crash(tmp_path: Path) -> None:
    save(tmp_path)
    loader, _ = open_loader(tmp_path)
    os.truncate(tmp_path / SINGLE, load_weights(tmp_path).entries[KEY].begin + 10)

    with pytest.raises(ModelError, match=f"{KEY}: expected 6144 bytes, found 10 bytes"):
        loader.take(KEY)


@given(changes=st.dictionaries(st.integers(0, 400), st.binary(min_size=1, max_size=3), max_size=4))
def test_a_damaged_header_is_a_model_error_or_harmless(changes: dict[int, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SINGLE
        save_file({"a": torch.ones(2, 3), "b": torch.ones(4)}, path, {"format": "pt"})
        content = bytearray(path.read_bytes())
        for position, value in changes.items():
            content[position : position + len(value)] = value
        path.write_bytes(content)

        try:
            entries = read_header(path)
        except ModelError as error:
            assert str(error).startswith(str(path))
        else:
            assert all(8 <= entry.begin <= entry.end <= len(content) for entry in entries.values())


def test_the_model_folder_is_read_with_files_read_only(tmp_path: Path) -> None:
    save(tmp_path)
    for path in tmp_path.iterdir():
        path.chmod(0o444)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    load(tmp_path)

    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
