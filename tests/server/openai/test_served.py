"""ServedModel from a model folder."""

import json
from pathlib import Path

import pytest

from quire.config.errors import ModelError
from quire.pipelines.tokenizer import TextTokenizer
from quire.server.errors import ModelNotFound
from quire.server.openai.served import ServedModel

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "eos_token_id": [2, 7],
}


@pytest.fixture
def folder(tmp_path: Path, tokenizer: TextTokenizer) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text(tokenizer._backend.to_str())
    return tmp_path


def test_reads_what_the_folder_says(folder: Path) -> None:
    served = ServedModel.from_folder(folder, ["a", "b"])

    assert served.names == ("a", "b")
    assert served.vocab_size == 512
    assert served.eos_token_ids == (2, 7)
    assert served.tokenizer.encode("Hello", add_special_tokens=False)


def test_fingerprint_follows_the_configuration(folder: Path) -> None:
    first = ServedModel.from_folder(folder, ["a"]).system_fingerprint
    again = ServedModel.from_folder(folder, ["a"]).system_fingerprint
    (folder / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 1e-6}))

    assert first == again
    assert first != ServedModel.from_folder(folder, ["a"]).system_fingerprint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        ServedModel.from_folder(folder, ["a"])


def test_resolves_names(folder: Path) -> None:
    served = ServedModel.from_folder(folder, ["a", "b"])

    assert (served.resolve(None), served.resolve("b")) == ("a", "b")
    with pytest.raises(ModelNotFound, match="'c' does not exist; this server serves 'a', 'b'"):
        served.resolve("c")
