"""How the files of sentence-transformers are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quire.config.errors import ModelError
from quire.pipelines.embedding_config import EmbeddingConfig, finished_vector, read_embedding_config

PREFIX = "sentence_transformers.models."


def write(folder: Path, steps: list[str], pooling: dict[str, bool]) -> Path:
    names = {"Transformer": "", "Pooling": "1_Pooling"}
    rows = [
        {"idx": i, "name": str(i), "path": names.get(step, f"{i}_{step}"), "type": PREFIX + step}
        for i, step in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    values = {"word_embedding_dimension": 8, **pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("key", "pooling"),
    [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_lasttoken", "last"),
    ],
)
@pytest.mark.parametrize("normalizes", [True, False])
def test_pooling_and_normalization_are_the_models(
    key: str, pooling: Any, normalizes: bool, tmp_path: Path
) -> None:
    steps = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    write(tmp_path, steps, {"pooling_mode_max_tokens": False, key: True})

    assert read_embedding_config(tmp_path, "cls") == EmbeddingConfig(pooling, normalizes)


def test_without_files_the_default_holds(tmp_path: Path) -> None:
    assert read_embedding_config(tmp_path, "last") == EmbeddingConfig("last", True)


def test_the_length_that_the_model_was_trained_for_is_read(tmp_path: Path) -> None:
    values = {"max_seq_length": 256, "do_lower_case": True}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(values))

    config = read_embedding_config(tmp_path, "cls")

    assert (config.max_tokens, config.lowers_case) == (256, True)


def test_prompts_are_read(tmp_path: Path) -> None:
    values = {"prompts": {"query": "Find: ", "document": ""}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(values))

    config = read_embedding_config(tmp_path, "cls")

    assert config.prompts == values["prompts"]
    assert config.default_prompt == "Find: "


@pytest.mark.parametrize(
    ("steps", "pooling", "message"),
    [
        (["Transformer", "Dense"], {}, "type: expected Transformer, Pooling or Normalize"),
        (["Pooling"], {"pooling_mode_max_tokens": True}, "to be true, found .*max_tokens"),
        (
            ["Pooling"],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "expected one of",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    steps: list[str], pooling: dict[str, bool], message: str, tmp_path: Path
) -> None:
    write(tmp_path, steps, pooling)

    with pytest.raises(ModelError, match=message) as raised:
        read_embedding_config(tmp_path, "cls")

    assert str(tmp_path) in str(raised.value)


def test_a_pooling_outside_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["Pooling"], {})
    rows = json.loads((tmp_path / "modules.json").read_text())
    rows[0]["path"] = "../other"
    (tmp_path / "modules.json").write_text(json.dumps(rows))

    with pytest.raises(ModelError, match="path: expected the name of a folder"):
        read_embedding_config(tmp_path, "cls")


def test_a_finished_vector_is_cut_then_made_of_length_1() -> None:
    raw = np.array([3.0, 4.0, 12.0], "<f4").tobytes()

    assert finished_vector(raw, normalize=False).tolist() == [3.0, 4.0, 12.0]
    assert finished_vector(raw, normalize=False, dimensions=2).tolist() == [3.0, 4.0]
    unit = finished_vector(raw, normalize=True, dimensions=2)
    assert unit.dtype == np.float32
    assert unit.tolist() == pytest.approx([0.6, 0.8])
    assert finished_vector(bytes(12), normalize=True).tolist() == [0.0, 0.0, 0.0]


def test_what_of_a_text_the_model_reads() -> None:
    config = EmbeddingConfig("mean", lowers_case=True, default_prompt="Find: ")

    assert config.text("A Fox") == "find: a fox"
