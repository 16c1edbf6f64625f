"""What is done to logits in place before sampling: penalties, bias, masks; and greedy choice.

All of it runs on the device of the logits without waiting for it, so a CUDA graph may hold it.
Ids outside the vocabulary are free slots of fixed-size buffers and are ignored.
"""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_range, check_tensor
from quire.kernels.sampling import MAX_VOCABULARY
from quire.kernels.torch_op import torch_op


def _fake_penalties(
    logits_buffer: torch.Tensor,
    frequency_data: torch.Tensor,
    frequency_offsets: torch.Tensor,
    **penalties: torch.Tensor | float,
) -> None:
    return None


@torch_op(fake=_fake_penalties, mutates=("logits_buffer",))
def apply_penalties_to_logits(
    logits_buffer: torch.Tensor,
    frequency_data: torch.Tensor,
    frequency_offsets: torch.Tensor,
    *,
    frequency_penalty: torch.Tensor | float = 0.0,
    presence_penalty: torch.Tensor | float = 0.0,
    repetition_penalty: torch.Tensor | float = 1.0,
) -> None:
    """Apply repetition, then frequency and presence penalties in place, as vLLM does.

    Repetition (CTRL, https://arxiv.org/abs/1909.05858, as HF): positive logits of listed tokens
    are divided by it, others multiplied. Then logit -= frequency * count + presence where count
    is at least 1; a count of 0 is a token of the prompt alone.

    Args:
        logits_buffer: float32 [B, V], contiguous.
        frequency_data: int32 [n, 2], token id and count; a token at most once per row. An id
            outside [0, V) is a free slot.
        frequency_offsets: int32 [B + 1], where each row's entries begin, ascending within [0, n].
        frequency_penalty, presence_penalty, repetition_penalty: a number for all rows or
            float32 [B] on the device of the logits; repetition above 0.

    Raises:
        ValueError: a shape, dtype or device outside the above, or repetition not above 0.
    """
    rows = _check_logits("logits_buffer", logits_buffer)
    device = logits_buffer.device
    check_frequencies(frequency_data, frequency_offsets, rows, device)
    for name, value in (
        ("frequency_penalty", frequency_penalty),
        ("presence_penalty", presence_penalty),
        ("repetition_penalty", repetition_penalty),
    ):
        if isinstance(value, torch.Tensor):
            check_tensor(name, value, (rows,), torch.float32, device=device)
        elif name == "repetition_penalty" and not value > 0.0:
            raise ValueError(f"repetition_penalty must be above 0, got {value}")
    if logits_buffer.is_cuda:
        from quire.kernels.logits_processing.kernel import apply_penalties_to_logits_triton as run
    else:
        from quire.kernels.logits_processing.reference import (
            apply_penalties_to_logits_reference as run,
        )
    run(
        logits_buffer,
        frequency_data,
        frequency_offsets,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
    )


def _fake_update(**_: Any) -> None:
    return None


@torch_op(fake=_fake_update, mutates=("frequency_data",))
def update_frequency_data(
    frequency_data: torch.Tensor, frequency_offsets: torch.Tensor, tokens: torch.Tensor
) -> None:
    """Count one new token per row in place.

    The row's entry of that token grows by one. Without one, the row's first free slot (an id
    below 0) takes the token with count 1; without a free slot the token is not counted.

    Args:
        frequency_data: int32 [n, 2], token id and count.
        frequency_offsets: int32 [B + 1], where each row's entries begin, ascending within [0, n].
        tokens: int32 [B]; a token below 0 counts nothing.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("tokens", tokens, ("B",), torch.int32, device=frequency_data.device)
    check_frequencies(frequency_data, frequency_offsets, len(tokens), frequency_data.device)
    if frequency_data.is_cuda:
        from quire.kernels.logits_processing.kernel import update_frequency_data_triton as run
    else:
        from quire.kernels.logits_processing.reference import update_frequency_data_reference as run
    run(frequency_data, frequency_offsets, tokens)


def _fake_scatter(**_: Any) -> None:
    return None


@torch_op(fake=_fake_scatter, mutates=("data",))
def scatter_set_constant(data: torch.Tensor, indices: torch.Tensor, fill_val: float) -> None:
    """data[row, column] = fill_val for each index, in place.

    Args:
        data: [R, C], bfloat16, float16 or float32, contiguous.
        indices: int32 [n, 2], row and column; those outside `data` are ignored.
        fill_val: rounded to the dtype of `data`.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("data", data, ("R", "C"), FLOATS)
    check_tensor("indices", indices, ("n", 2), torch.int32, device=data.device)
    if data.is_cuda:
        from quire.kernels.logits_processing.kernel import scatter_set_constant_triton as run
    else:
        from quire.kernels.logits_processing.reference import scatter_set_constant_reference as run
    run(data, indices, fill_val)


def _fake_bitmask(**_: Any) -> None:
    return None


@torch_op(fake=_fake_bitmask, mutates=("logits",))
def apply_token_bitmask(
    logits: torch.Tensor, bitmask: torch.Tensor, rows: torch.Tensor | None = None
) -> None:
    """Set the logits of tokens whose bit is 0 to -inf, in place; xgrammar's layout.

    Bit i % 32 (least first) of word i / 32 is token i's. Tokens beyond the bitmask are masked.

    Args:
        logits: float32 [B, V], contiguous.
        bitmask: int32 [B, W], usually W = ceil(V / 32).
        rows: int32 [n], the only rows to mask, or None for all; those outside [0, B) are ignored.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    count, device = _check_logits("logits", logits), logits.device
    check_tensor("bitmask", bitmask, (count, "W"), torch.int32, device=device)
    if rows is not None:
        check_tensor("rows", rows, ("n",), torch.int32, device=device)
    if logits.is_cuda:
        from quire.kernels.logits_processing.kernel import apply_token_bitmask_triton as run
    else:
        from quire.kernels.logits_processing.cpu import apply_token_bitmask_cpu as run
    run(logits, bitmask, rows)


def _fake_bias(**_: Any) -> None:
    return None


@torch_op(fake=_fake_bias, mutates=("logits",))
def apply_logit_bias(
    logits: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor, offsets: torch.Tensor
) -> None:
    """Add to the logits of some tokens of each row, in place.

    Args:
        logits: float32 [B, V], contiguous.
        tokens: int32 [n], a token at most once per row; those outside [0, V) are ignored.
        bias: float32 [n], what to add.
        offsets: int32 [B + 1], where each row's entries begin, ascending within [0, n].

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    rows, device = _check_logits("logits", logits), logits.device
    check_tensor("tokens", tokens, ("n",), torch.int32, device=device)
    check_tensor("bias", bias, (len(tokens),), torch.float32, device=device)
    check_tensor("offsets", offsets, (rows + 1,), torch.int32, device=device)
    if logits.is_cuda:
        from quire.kernels.logits_processing.kernel import apply_logit_bias_triton as run
    else:
        from quire.kernels.logits_processing.reference import apply_logit_bias_reference as run
    run(logits, tokens, bias, offsets)


def _fake_soft_cap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.empty_like(logits)


@torch_op(fake=_fake_soft_cap)
def logits_soft_cap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(logits / cap), fp32 inside, rounded once (Gemma 2, arXiv 2408.00118).

    Args:
        logits: [R, V], bfloat16, float16 or float32, contiguous.
        cap: above 0.

    Returns:
        [R, V] in the dtype of `logits`.

    Raises:
        ValueError: a shape, dtype or cap outside the above.
    """
    check_tensor("logits", logits, ("R", "V"), FLOATS)
    if not cap > 0.0:
        raise ValueError(f"cap must be above 0, got {cap}")
    if logits.is_cuda:
        from quire.kernels.logits_processing.kernel import logits_soft_cap_triton as run
    else:
        from quire.kernels.logits_processing.reference import logits_soft_cap_reference as run
    return run(logits, cap)


def _fake_greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = logits.new_empty(logits.shape[0], dtype=torch.int32)
    return tokens, logits.new_empty(logits.shape[0])


@torch_op(fake=_fake_greedy)
def greedy_with_logprobs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row, lowest id among equals, and its log-probability.

    A row's result depends on that row alone. A row with NaN or without a finite logit gets an
    unspecified token of the vocabulary.

    Args:
        logits: float32 [B, V], contiguous.

    Returns:
        tokens int32 [B] and natural-log probabilities float32 [B].

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    _check_logits("logits", logits)
    if logits.is_cuda:
        from quire.kernels.logits_processing.kernel import greedy_with_logprobs_triton as run
    else:
        from quire.kernels.logits_processing.reference import greedy_with_logprobs_reference as run
    return run(logits)


def _check_logits(name: str, logits: torch.Tensor) -> int:
    """The number of rows."""
    check_tensor(name, logits, ("B", "V"), torch.float32)
    check_range(f"the vocabulary of {name}", logits.shape[1], 1, MAX_VOCABULARY)
    return logits.shape[0]


def check_frequencies(
    frequency_data: torch.Tensor, frequency_offsets: torch.Tensor, rows: int, device: torch.device
) -> None:
    check_tensor("frequency_data", frequency_data, ("n", 2), torch.int32, device=device)
    check_tensor("frequency_offsets", frequency_offsets, (rows + 1,), torch.int32, device=device)
