"""Names of checkpoints that were saved without the head."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity.driver import load_folder
from parity.random_models import MAX_POSITIONS, make_random_model
from safetensors.torch import load_file, save_file

from quire.config.errors import ConfigError, ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.weights.base_names import with_whole_names
from quire.pipelines.weights.checkpoint import match_weights
from quire.pipelines.weights.safetensors_weights import SafetensorWeights

FILE = "model.safetensors"


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    make_random_model("GPT2", class_suffix="LMHeadModel").save_pretrained(tmp_path)
    return tmp_path


def rewrite(
    folder: Path, name: Callable[[str], str], **more: torch.Tensor
) -> dict[str, torch.Tensor]:
    tensors = {name(key): tensor for key, tensor in load_file(folder / FILE).items()}
    save_file({**tensors, **more}, folder / FILE)
    return tensors


def bare(name: str) -> str:
    return name.removeprefix("transformer.")


def test_bare_names_are_those_of_the_whole_model(gpt2: Path) -> None:
    spec = load_model_spec(gpt2)
    stored = rewrite(gpt2, bare, **{"lm_head.weight": torch.zeros(1)})

    weights = with_whole_names(SafetensorWeights(gpt2), spec)

    assert match_weights(weights, spec) == list(spec.tensors())
    name = "h.1.attn.c_attn.weight"
    assert torch.equal(weights.read(f"transformer.{name}"), stored[name])


def test_whole_names_are_left_alone(gpt2: Path) -> None:
    weights = SafetensorWeights(gpt2)

    assert with_whole_names(weights, load_model_spec(gpt2)) is weights


def test_errors_name_a_tensor_as_its_file_does(gpt2: Path) -> None:
    rewrite(gpt2, bare, **{"h.0.attn.other": torch.zeros(3)})
    spec = load_model_spec(gpt2)

    with pytest.raises(ModelError, match=r"safetensors: h\.0\.attn\.other: expected no such"):
        match_weights(with_whole_names(SafetensorWeights(gpt2), spec), spec)


def test_mask_buffers_of_old_checkpoints_are_left_unread(gpt2: Path) -> None:
    mask = torch.ones(1, 1, MAX_POSITIONS, MAX_POSITIONS, dtype=torch.bool)
    masks = {f"transformer.h.{index}.attn.bias": mask.clone() for index in range(3)}
    rewrite(gpt2, str, **masks, **{"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})

    spec = load_model_spec(gpt2)

    assert match_weights(SafetensorWeights(gpt2), spec) == list(spec.tensors())


def test_learned_positions_bound_the_length(gpt2: Path) -> None:
    assert load_folder(gpt2).max_length == MAX_POSITIONS
    with pytest.raises(ConfigError, match=f"exceeds the model's max_.* {MAX_POSITIONS}$"):
        load_folder(gpt2, max_length=MAX_POSITIONS + 1)
