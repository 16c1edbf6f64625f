"""A whole model through the Triton kernels, in the interpreter, against the CPU path."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.kernels.flare_mla_decode_ragged import kernel as latent_kernel
from quire.kernels.flare_mla_decode_ragged.kernel import flare_mla_decode_ragged_triton
from quire.kernels.flash_attention_ragged import kernel as attention_kernel
from quire.kernels.flash_attention_ragged.kernel import flash_attention_ragged_triton
from quire.kernels.fused_latent_ragged_rope.kernel import fused_latent_ragged_rope_triton
from quire.kernels.fused_qk_ragged_rope.kernel import fused_qk_ragged_rope_triton
from quire.kernels.grouped_matmul_ragged.kernel import grouped_matmul_ragged_triton
from quire.kernels.rms_norm.kernel import rms_norm_triton
from quire.kernels.swish_glu.kernel import swish_glu_triton
from quire.pipelines.nn import (
    attention,
    block_program,
    head_linear,
    latent_attention,
    mlp,
    norm,
    transformer,
)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
        ("Qwen3", {"head_dim": 32}),
    ],
)
def test_triton_kernels_and_cpu_give_the_same_model(
    family: str,
    fields: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    histories = [random.Random(seed).choices(range(211), k=40) for seed in range(2)]
    steps = [[(0, 37)], [(0, 1), (1, 20)], [(0, 1), (1, 19)], [(0, 1), (1, 1)]]
    # Blocks op by op, as on a GPU.
    monkeypatch.setattr(block_program, "library", lambda: None)
    loaded = load(random_model(family, num_hidden_layers=2, **fields), exact=False)
    expected = drive(loaded).logits(histories, steps)
    calls: list[str] = []
    for module, name, kernel in (
        (attention, "flash_attention_ragged", flash_attention_ragged_triton),
        (attention, "fused_qk_ragged_rope", fused_qk_ragged_rope_triton),
        (norm, "rms_norm", rms_norm_triton),
        (mlp, "swish_glu", swish_glu_triton),
    ):

        def run(*args: Any, _name: str = name, _kernel: Any = kernel, **kwargs: Any) -> Any:
            calls.append(_name)
            return _kernel(*args, **kwargs)

        monkeypatch.setattr(module, name, run)
    monkeypatch.setattr(transformer, "reads_plans", lambda batch: batch.num_decode > 0)
    # Without a plan the kernel would make its own, in every layer.
    monkeypatch.setattr(attention_kernel, "plan_decode_triton", None)

    found = drive(loaded).logits(histories, steps)

    assert len(set(calls)) == 4
    for logits, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, reference, rtol=0, atol=1e-4)


def test_latent_attention_is_the_same_through_triton_kernels(
    monkeypatch: pytest.MonkeyPatch,
    random_model: Callable[..., Any],
    load: Callable[..., Any],
    drive: Callable[..., Any],
) -> None:
    """As a GPU runs it, its projections by head included."""
    histories = [random.Random(seed).choices(range(211), k=40) for seed in range(2)]
    steps = [[(0, 37)], [(0, 1), (1, 20)], [(0, 1), (1, 19)], [(0, 1), (1, 1)]]
    model = random_model(
        "DeepseekV2",
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_key_value_heads=4,
        head_dim=8,
        q_lora_rank=24,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
    )
    expected = drive(load(model)).logits(histories, steps)
    calls: set[str] = set()
    for module, name, kernel in (
        (latent_attention, "fused_latent_ragged_rope", fused_latent_ragged_rope_triton),
        (latent_attention, "flare_mla_decode_ragged", flare_mla_decode_ragged_triton),
        (head_linear, "grouped_matmul_ragged", grouped_matmul_ragged_triton),
        (norm, "rms_norm", rms_norm_triton),
    ):

        def run(*args: Any, _name: str = name, _kernel: Any = kernel, **kwargs: Any) -> Any:
            calls.add(_name)
            return _kernel(*args, **kwargs)

        monkeypatch.setattr(module, name, run)
    monkeypatch.setattr(
        latent_attention,
        "head_linear",
        lambda weight, plans: head_linear.GroupedHeads(weight, exact=True),
    )
    monkeypatch.setattr(transformer, "reads_plans", lambda batch: batch.num_decode > 0)
    # Without a plan the kernel would make its own, in every layer.
    monkeypatch.setattr(latent_kernel, "plan_decode_triton", None)

    found = drive(load(model)).logits(histories, steps)

    assert len(calls) == 4
    for logits, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, reference, rtol=0, atol=1e-4)
