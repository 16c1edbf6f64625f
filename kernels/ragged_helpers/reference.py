"""Ragged helpers in plain torch: the definition of correct, and the CPU path."""

import torch


def merge_ragged_tensors_reference(
    a: torch.Tensor, a_row_offsets: torch.Tensor, b: torch.Tensor, b_row_offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `merge_ragged_tensors`."""
    merged = a.new_empty(a.shape[0] + b.shape[0], *a.shape[1:])
    merged[_with_rows_of(a_row_offsets, b_row_offsets[:-1], a)] = a
    merged[_with_rows_of(b_row_offsets, a_row_offsets[1:], b)] = b
    return merged, a_row_offsets + b_row_offsets


def _with_rows_of(
    row_offsets: torch.Tensor, other_rows: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Where each row goes when `other_rows` rows of the other tensor lie before its context's."""
    index = torch.arange(rows.shape[0], device=rows.device)
    context = torch.searchsorted(row_offsets[1:], index, right=True)
    return index + other_rows[context]


def row_offsets_reference(lengths: torch.Tensor) -> torch.Tensor:
    """As `row_offsets`."""
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def kv_cache_get_max_seq_len_reference(
    cache_lengths: torch.Tensor, input_row_offsets: torch.Tensor
) -> torch.Tensor:
    """As `kv_cache_get_max_seq_len`."""
    lengths = cache_lengths + input_row_offsets.diff()
    return torch.cat((lengths.new_zeros(1), lengths)).max()


def gather_tokens_reference(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """As `gather_tokens`."""
    inside = _inside(token_table, slots, positions)
    tokens = torch.zeros_like(slots, dtype=torch.int32)
    tokens[inside] = token_table[slots[inside].long(), positions[inside].long()]
    return tokens


def scatter_tokens_reference(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
) -> None:
    """As `scatter_tokens`."""
    inside = _inside(token_table, slots, positions)
    place = (slots[inside].long(), positions[inside].long())
    token_table[place] = tokens[inside].to(torch.int32)


def _inside(
    token_table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    rows, columns = token_table.shape
    return (slots >= 0) & (slots < rows) & (positions >= 0) & (positions < columns)
