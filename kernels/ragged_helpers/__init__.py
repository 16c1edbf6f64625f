"""Row offsets, merged rows, cache lengths and token tables on the device.

All of it is index work that a step needs without waiting for the device.
"""

from typing import Any

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.torch_op import torch_op

INTEGERS = (torch.int32, torch.int64)


def _fake_merge(
    a: torch.Tensor, a_row_offsets: torch.Tensor, b: torch.Tensor, b_row_offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    merged = a.new_empty(a.shape[0] + b.shape[0], *a.shape[1:])
    return merged, torch.empty_like(a_row_offsets)


@torch_op(fake=_fake_merge)
def merge_ragged_tensors(
    a: torch.Tensor, a_row_offsets: torch.Tensor, b: torch.Tensor, b_row_offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay the rows of each context of `b` after those that it has in `a`.

    Values [1, 2, 3, 4, 5, 6] at offsets [0, 2, 6] and [7, 8, 9, 10] at [0, 3, 4] become
    [1, 2, 7, 8, 9, 3, 4, 5, 6, 10] at [0, 5, 10].

    Args:
        a: [A, ...], bfloat16, float16, float32, int32 or int64, contiguous.
        a_row_offsets: int32 [B + 1], ascending from 0 to A; the values are not checked.
        b: [N, ...] with rows of the shape and dtype of those of a.
        b_row_offsets: int32 [B + 1], ascending from 0 to N.

    Returns:
        The merged rows [A + N, ...] and their offsets int32 [B + 1].

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    device = a.device
    if a.ndim == 0:
        raise ValueError("a must be [A, ...], got []")
    check_tensor("a", a, ("A", *a.shape[1:]), (*FLOATS, *INTEGERS))
    check_tensor("a_row_offsets", a_row_offsets, ("B + 1",), torch.int32, device=device)
    if a_row_offsets.shape[0] == 0:
        raise ValueError("a_row_offsets must have at least one entry, got 0")
    check_tensor("b", b, ("N", *a.shape[1:]), a.dtype, device=device)
    check_tensor("b_row_offsets", b_row_offsets, a_row_offsets.shape, torch.int32, device=device)
    if a.is_cuda:
        from quire.kernels.ragged_helpers.kernel import merge_ragged_tensors_triton as run
    else:
        from quire.kernels.ragged_helpers.reference import merge_ragged_tensors_reference as run
    return run(a, a_row_offsets, b, b_row_offsets)


def _fake_offsets(lengths: torch.Tensor) -> torch.Tensor:
    return lengths.new_empty(lengths.shape[0] + 1)


@torch_op(fake=_fake_offsets)
def row_offsets(lengths: torch.Tensor) -> torch.Tensor:
    """Where each context's rows start, and last where they end: 0, then the running sum.

    Args:
        lengths: int32 [B], whose sum fits an int32.

    Returns:
        int32 [B + 1].

    Raises:
        ValueError: another shape or dtype.
    """
    check_tensor("lengths", lengths, ("B",), torch.int32)
    if lengths.is_cuda:
        from quire.kernels.ragged_helpers.kernel import row_offsets_triton as run
    else:
        from quire.kernels.ragged_helpers.reference import row_offsets_reference as run
    return run(lengths)


def _fake_max(cache_lengths: torch.Tensor, input_row_offsets: torch.Tensor) -> torch.Tensor:
    return cache_lengths.new_empty(())


@torch_op(fake=_fake_max)
def kv_cache_get_max_seq_len(
    cache_lengths: torch.Tensor, input_row_offsets: torch.Tensor
) -> torch.Tensor:
    """The most keys that a context of the step has, this step's included, or 0 without contexts.

    The host knows it as `max(batch.kv_lengths)`; this is for captured graphs.

    Args:
        cache_lengths: int32 [B], keys before this step.
        input_row_offsets: int32 [B + 1], where the new tokens of each context start.

    Returns:
        int32 [], on the device.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("cache_lengths", cache_lengths, ("B",), torch.int32)
    check_tensor(
        "input_row_offsets",
        input_row_offsets,
        (cache_lengths.shape[0] + 1,),
        torch.int32,
        device=cache_lengths.device,
    )
    if cache_lengths.is_cuda:
        from quire.kernels.ragged_helpers.kernel import kv_cache_get_max_seq_len_triton as run
    else:
        from quire.kernels.ragged_helpers.reference import (
            kv_cache_get_max_seq_len_reference as run,
        )
    return run(cache_lengths, input_row_offsets)


def _fake_gather(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(slots, dtype=torch.int32)


@torch_op(fake=_fake_gather)
def gather_tokens(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """The token at a position of each row's slot; 0 for a row outside the table, as slot -1.

    Args:
        token_table: int32 [slots, max_length], contiguous: the tokens of each running context.
        slots: int32 or int64 [T].
        positions: int32 or int64 [T].

    Returns:
        int32 [T].

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check_places(token_table, slots, positions)
    if token_table.is_cuda:
        from quire.kernels.ragged_helpers.kernel import gather_tokens_triton as run
    else:
        from quire.kernels.ragged_helpers.reference import gather_tokens_reference as run
    return run(token_table, slots, positions)


def _fake_scatter(**_: Any) -> None:
    return None


@torch_op(fake=_fake_scatter, mutates=("token_table",))
def scatter_tokens(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
) -> None:
    """Write each row's token at a position of its slot, so that the next step can read it.

    A row outside the table, as slot -1, is skipped; two rows must not have one place.

    Args:
        token_table: int32 [slots, max_length], contiguous: the tokens of each running context.
        slots: int32 or int64 [T].
        positions: int32 or int64 [T].
        tokens: int32 or int64 [T]; ids fit an int32.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    _check_places(token_table, slots, positions)
    check_tensor("tokens", tokens, slots.shape, INTEGERS, device=token_table.device)
    if token_table.is_cuda:
        from quire.kernels.ragged_helpers.kernel import scatter_tokens_triton as run
    else:
        from quire.kernels.ragged_helpers.reference import scatter_tokens_reference as run
    run(token_table, slots, positions, tokens)


def _check_places(token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
    check_tensor("token_table", token_table, ("slots", "max_length"), torch.int32)
    device = token_table.device
    check_tensor("slots", slots, ("T",), INTEGERS, device=device)
    check_tensor("positions", positions, slots.shape, INTEGERS, device=device)
