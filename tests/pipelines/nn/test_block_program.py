"""Blocks in one call of the compiled library: the bits of the ops one by one, or no program."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.driver import Driver, load_folder
from parity.random_models import make_random_model

from quire.kernels.native import library
from quire.pipelines.nn import block_program

HISTORIES = [random.Random(seed).choices(range(211), k=90) for seed in range(3)]
STEPS = [
    [(0, 70)],
    [(0, 1), (1, 20)],
    [(0, 1), (1, 1), (2, 33)],
    *([[(0, 1), (1, 1), (2, 1)]] * 3),
]
"""A prompt, decodes beside prompts, decodes alone."""

PLAIN = [
    ("Llama", {"tie_word_embeddings": True, "head_dim": 64, "num_hidden_layers": 2}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    ("Qwen3", {"head_dim": 32}),
    ("Gemma2", {"sliding_window": 20, "num_hidden_layers": 2}),
    ("GPT2", {"class_suffix": "LMHeadModel"}),
    ("Starcoder2", {}),
    ("SmolLM3", {"pad_token_id": 0, "num_hidden_layers": 4}),
    ("Glm", {"pad_token_id": 0, "head_dim": 16}),
]
OTHER = [
    ("Olmo2", {"pad_token_id": 0}),
    ("StableLm", {"use_parallel_residual": True}),
    ("Granite", {"residual_multiplier": 0.5}),
    ("Mixtral", {}),
]

Programs = Callable[[], list[block_program.BlockProgram]]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Those of the models that were built since."""
    made: list[block_program.BlockProgram] = []
    before = block_program.BlockProgram.__init__

    def init(self: block_program.BlockProgram, *args: Any) -> None:
        before(self, *args)
        made.append(self)

    monkeypatch.setattr(block_program.BlockProgram, "__init__", init)
    return lambda: made


def logits(folder: Path, dtype: str, threads: int) -> list[torch.Tensor]:
    driver = Driver(load_folder(folder, dtype=dtype, threads=threads), 0)
    driver.clean()
    return driver.logits(HISTORIES, STEPS)


@pytest.mark.skipif(library() is None, reason="the compiled library is not built")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "fields"), PLAIN, ids=[family for family, _ in PLAIN])
def test_a_program_has_the_bits_of_the_ops_one_by_one(
    family: str,
    fields: dict[str, Any],
    dtype: str,
    tmp_path: Path,
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_random_model(family, **fields).save_pretrained(tmp_path)
    found = [logits(tmp_path, dtype, threads) for threads in (1, 2)]
    assert all(program.is_known for program in programs())

    monkeypatch.setattr(block_program, "library", lambda: None)
    expected = logits(tmp_path, dtype, 1)

    assert not programs()[-1].is_known
    for results in found:
        for mine, theirs in zip(results, expected, strict=True):
            assert torch.equal(mine.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize(("family", "fields"), OTHER, ids=[family for family, _ in OTHER])
def test_blocks_of_other_forms_have_no_program(
    family: str, fields: dict[str, Any], tmp_path: Path, programs: Programs
) -> None:
    make_random_model(family, **fields).save_pretrained(tmp_path)
    load_folder(tmp_path)

    (program,) = programs()

    assert not program.is_known
