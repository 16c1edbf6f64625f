"""Models quantized at load: bits of logits are the history's own, and a tied head is as another."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.kernels.native import library

HISTORY = random.Random(3).choices(range(211), k=67)
each_setting = pytest.mark.parametrize("quantization", ["int8", "w8a8"])


@each_setting
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_equal_for_any_cut_and_batch(
    quantization: str,
    dtype: str,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    others = [random.Random(seed).choices(range(211), k=30) for seed in range(20)]
    model = random_model("Qwen3", tie_word_embeddings=True)
    loaded = load(model, dtype=dtype, quantization=quantization, kv_cache_pages=128)
    (whole,) = drive(loaded).logits([HISTORY], [[(0, 67)]])
    prefill = [(0, 33), *((index, 29) for index in range(1, 21))]
    decode = [(0, 1), *((index, 1) for index in range(1, 21))]

    (cut,) = drive(loaded).logits([HISTORY], [[(0, 13)], [(0, 48)], *([[(0, 1)]] * 6)])
    beside, *_ = drive(loaded, seed=1).logits([HISTORY, *others], [prefill, decode, [(0, 33)]])

    assert torch.equal(cut, whole)
    assert torch.equal(beside, whole)


@each_setting
def test_a_tied_head_has_the_bits_of_the_same_head_stored_by_itself(
    quantization: str,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    tied = random_model("Llama", tie_word_embeddings=True)
    untied = random_model("Llama", tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    steps = [[(0, 67)]]

    (found,) = drive(load(tied, quantization=quantization)).logits([HISTORY], steps)

    (expected,) = drive(load(untied, quantization=quantization)).logits([HISTORY], steps)
    assert torch.equal(found, expected)
    (plain,) = drive(load(tied)).logits([HISTORY], steps)
    assert not torch.equal(found, plain)


def test_w8a8_needs_no_compiled_kernel_for_its_bits(
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if library() is None:
        pytest.skip("no compiled library")
    model = random_model("Llama")
    (compiled,) = drive(load(model, quantization="w8a8")).logits([HISTORY], [[(0, 67)]])

    monkeypatch.setattr("quire.kernels.w8a8.prepared.library", lambda: None)

    (plain,) = drive(load(model, quantization="w8a8")).logits([HISTORY], [[(0, 67)]])
    assert torch.equal(plain, compiled)
