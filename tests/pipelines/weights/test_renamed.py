"""Checkpoints with other prefixes are read under the names that the spec has."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quire.config.errors import ModelError
from quire.pipelines.weights.renamed import RenamedWeights, with_prefixes
from quire.pipelines.weights.safetensors_weights import SafetensorWeights

PREFIXES = (("model.text.", "text.model."), ("model.", "other."))


def open_weights(folder: Path, *names: str) -> RenamedWeights:
    tensors = {name: torch.full((2,), float(index)) for index, name in enumerate(names)}
    save_file(tensors, folder / "model.safetensors")
    return with_prefixes(SafetensorWeights(folder), PREFIXES)


def test_the_first_prefix_that_fits_is_replaced(tmp_path: Path) -> None:
    weights = open_weights(tmp_path, "model.text.a", "model.b", "c.model.text.d")

    assert set(weights.entries) == {"text.model.a", "other.b", "c.model.text.d"}
    assert weights.read("text.model.a").tolist() == [0, 0]
    assert weights.read("other.b").tolist() == [1, 1]
    assert weights.source == str(tmp_path / "model.safetensors")


def test_errors_name_a_tensor_as_the_file_does(tmp_path: Path) -> None:
    entry = open_weights(tmp_path, "model.text.a").entries["text.model.a"]

    assert "model.text.a: expected x, found y" in str(entry.wrong("x", "y"))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected no other name for"):
        open_weights(tmp_path, "model.text.a", "text.model.a")
