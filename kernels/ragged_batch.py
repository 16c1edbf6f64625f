"""The ragged batch that attention, rope and cache ops share."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """B contexts with T tokens in all, laid end to end; decode rows (one token) come first.

    Device tensors: `input_row_offsets` int32 [B + 1]; `cache_lengths` int32 [B], keys already in
    pages before this step; `lookup_table` int32 [B, P], page ids in order, padded with 0;
    `positions` int32 [T]; `slots` int64 [T], page * page_size + offset of each token's KV.
    Host values, so that no op waits for the device: `query_lengths` and `kv_lengths` (keys
    including this step's) per context, and `num_decode`, how many leading contexts have one token.
    """

    input_row_offsets: torch.Tensor
    cache_lengths: torch.Tensor
    lookup_table: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    num_decode: int
