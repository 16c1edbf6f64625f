"""ServedModel from a model folder."""

import json
from pathlib import Path

import pytest

from quire.config.errors import ConfigError, ModelError
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


BERT = {**CONFIG, "architectures": ["BertModel"], "intermediate_size": 32, "hidden_act": "gelu"}


def test_a_decoder_makes_embeddings_when_its_folder_or_the_task_says_so(folder: Path) -> None:
    assert ServedModel.from_folder(folder, ["a"]).embedding is None
    told = ServedModel.from_folder(folder, ["a"], task="embeddings").embedding
    assert told is not None and (told.pooling, told.normalize) == ("last", True)

    (folder / "modules.json").write_text("[]")

    found = ServedModel.from_folder(folder, ["a"])
    assert found.embedding is not None
    assert (found.hidden_size, found.is_encoder, found.embedding.normalize) == (16, False, False)
    assert ServedModel.from_folder(folder, ["a"], task="generate").embedding is None


def test_an_encoder_makes_embeddings_alone(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(BERT))

    served = ServedModel.from_folder(folder, ["a"])

    assert served.embedding is not None and served.embedding.pooling == "cls"
    assert (served.vocab_size, served.hidden_size, served.is_encoder) == (512, 16, True)
    with pytest.raises(ConfigError, match="task: generate: BertModel makes embeddings"):
        ServedModel.from_folder(folder, ["a"], task="generate")
