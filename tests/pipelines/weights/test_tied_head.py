"""Checkpoints of models with a tied head, as different tools store them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity.driver import Driver, load_folder
from parity.random_models import make_random_model
from safetensors.torch import load_file, save_file

from quire.config.errors import ModelError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
HISTORY = [3, 1, 4, 1, 5, 9, 2, 6]

Tensors = dict[str, torch.Tensor]


def save(folder: Path, family: str, change: Callable[[Tensors], Tensors]) -> torch.Tensor:
    """The checkpoint of a tied model after `change`; returns the logits of transformers."""
    fields = {"num_key_value_heads": 4} if family == "GPTNeoX" else {}
    model = make_random_model(family, tie_word_embeddings=True, num_hidden_layers=1, **fields)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    reread = type(model).from_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = reread(torch.tensor([HISTORY])).logits[0]
    return logits


def logits(folder: Path) -> torch.Tensor:
    driver = Driver(load_folder(folder, max_length=16))
    driver.clean()
    return driver.logits([HISTORY], [[(0, len(HISTORY))]])[0]


def twice(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: tensors[EMBEDDING].clone()}


def as_head_only(tensors: Tensors) -> Tensors:
    return {**{k: v for k, v in tensors.items() if k != EMBEDDING}, HEAD: tensors[EMBEDDING]}


def without_prefix(tensors: Tensors) -> Tensors:
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return {**bare, HEAD: tensors[EMBEDDING].clone()}


@pytest.mark.parametrize("change", [dict, twice, as_head_only, without_prefix])
def test_the_head_is_the_embedding_under_either_name(
    change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    expected = save(tmp_path, "Llama", change)

    assert torch.allclose(logits(tmp_path), expected, atol=1e-4)


def test_a_head_of_its_own_is_refused_where_the_config_says_tied(tmp_path: Path) -> None:
    save(tmp_path, "Llama", lambda tensors: {**tensors, HEAD: tensors[EMBEDDING] + 1})

    message = f"{HEAD}: expected the numbers of {EMBEDDING}, as tie_word_embeddings is true"
    with pytest.raises(ModelError, match=message):
        load_folder(tmp_path)


def test_so_is_one_of_another_name(tmp_path: Path) -> None:
    embedding = "gpt_neox.embed_in.weight"
    save(
        tmp_path,
        "GPTNeoX",
        lambda tensors: {**tensors, "embed_out.weight": tensors[embedding] * 2},
    )

    with pytest.raises(ModelError, match=f"embed_out.weight: expected the numbers of {embedding}"):
        load_folder(tmp_path)
