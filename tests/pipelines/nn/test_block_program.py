"""Blocks in one call of the compiled library: the bits of the ops one by one, or no program."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.driver import Driver, load_folder
from parity.random_models import make_random_model

from quire.config.settings import ModelSettings
from quire.kernels.native import library
from quire.pipelines.architectures.build import build_decoder
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.registry import ARCHITECTURES
from quire.pipelines.nn import block_program
from quire.pipelines.nn.transformer import Transformer
from quire.pipelines.worker.load import load_runner

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


def derived(part: Any) -> None:
    """Make `part` of a class of its own that doubles what it gives."""

    def call(self: Any, *args: Any) -> Any:
        given = before(self, *args)
        return tuple(2 * one for one in given) if isinstance(given, tuple) else 2 * given

    before = type(part).__call__
    part.__class__ = type("Doubled", (type(part),), {"__call__": call})


def louder_mlp(model: Transformer) -> None:
    mlp = model.blocks[0].mlp
    model.blocks[0].mlp = lambda x_TC: 2 * mlp(x_TC)


def louder_up(model: Transformer) -> None:
    mlp: Any = model.blocks[0].mlp
    up = mlp.up
    mlp.up = lambda x_TC: 2 * up(x_TC)


def louder_norm(model: Transformer) -> None:
    norm = model.norm
    model.norm = lambda x_TC, residual_TC=None: tuple(2 * one for one in norm(x_TC, residual_TC))


def any_of(part: Any) -> Any:
    return part


CHANGES: dict[str, Callable[[Transformer], None]] = {
    "mlp": louder_mlp,
    "up": louder_up,
    "norm": louder_norm,
    "class of a block": lambda model: derived(model.blocks[0]),
    "class of an mlp": lambda model: derived(model.blocks[0].mlp),
    "class of an attention": lambda model: derived(model.blocks[0].attention),
    "class of a linear layer": lambda model: derived(any_of(model.blocks[0].mlp).down),
    "class of a norm": lambda model: derived(model.blocks[0].norms["mlp_norm"]),
    "class of the last norm": lambda model: derived(model.norm),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_custom_architecture_puts_into_a_model_is_run(
    change: Callable[[Transformer], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_random_model("Llama", num_hidden_layers=2).save_pretrained(tmp_path)

    def build(*args: Any, **options: Any) -> Transformer:
        model = build_decoder(*args, **options)
        change(model)
        return model

    def changed_logits() -> torch.Tensor:
        rows = [replace(row, build=build) for row in ARCHITECTURES if "Llama" in row.name]
        settings = ModelSettings(device="cpu", threads=1, page_size=16, kv_cache_pages=64)
        spec = load_model_spec(tmp_path)
        loaded = load_runner(settings, tmp_path, spec, lambda *_: None, architectures=rows)
        return torch.cat(Driver(loaded).logits(HISTORIES, STEPS))

    found = changed_logits()
    monkeypatch.setattr(block_program, "library", lambda: None)

    assert torch.equal(found, changed_logits())
    assert not torch.equal(found, torch.cat(logits(tmp_path, "float32", 1)))
