"""Sampling defaults from generation_config.json; transformers writes the file."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from quire.config.errors import ModelError
from quire.pipelines.architectures.sampling_defaults import load_sampling_defaults


def test_what_transformers_saves_is_what_counts(tmp_path: Path) -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05
    )
    config.save_pretrained(tmp_path)

    assert load_sampling_defaults(tmp_path) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.05,
    }


def test_no_file_and_no_values_are_no_defaults(tmp_path: Path) -> None:
    assert load_sampling_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2, "top_k": null}')
    assert load_sampling_defaults(tmp_path) == {}


def test_zero_is_a_value(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0, "top_k": 0, "min_p": 0.0}')

    assert load_sampling_defaults(tmp_path) == {"temperature": 0.0, "top_k": 0, "min_p": 0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", 3),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
    ],
)
def test_values_no_request_could_ask_for_are_named(
    tmp_path: Path, name: str, value: object
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))

    with pytest.raises(ModelError, match=rf"generation_config\.json: {name}: expected"):
        load_sampling_defaults(tmp_path)
