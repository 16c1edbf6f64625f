"""The ragged batch that attention, rope and cache ops share."""

from dataclasses import dataclass

import torch

from quire.kernels.checks import check_tensor


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """B contexts with T tokens in all, laid end to end; decode rows (one token) come first.

    Device tensors: `input_row_offsets` int32 [B + 1]; `cache_lengths` int32 [B], keys already in
    pages before this step; `lookup_table` int32 [B, P], page ids in order, 0 where a window has
    passed and as padding; `positions` int32 [T]; `slots` int64 [T], page * page_size + offset of
    each token's KV.
    Host values, so that no op waits for the device: `query_lengths` and `kv_lengths` (keys
    including this step's) per context, and `num_decode`, how many leading contexts have one token.

    Raises:
        ValueError: a field of another shape, dtype or device (checked once here, so that ops
            check only `check_matches`).
    """

    input_row_offsets: torch.Tensor
    cache_lengths: torch.Tensor
    lookup_table: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    num_decode: int

    def __post_init__(self) -> None:
        contexts, tokens = len(self.query_lengths), self.num_tokens
        device = self.input_row_offsets.device
        check_tensor(
            "batch.input_row_offsets", self.input_row_offsets, (contexts + 1,), torch.int32
        )
        for name, shape, dtype in (
            ("cache_lengths", (contexts,), torch.int32),
            ("lookup_table", (contexts, "P"), torch.int32),
            ("positions", (tokens,), torch.int32),
            ("slots", (tokens,), torch.int64),
        ):
            check_tensor(f"batch.{name}", getattr(self, name), shape, dtype, device=device)
        if len(self.kv_lengths) != contexts:
            raise ValueError(
                f"batch.kv_lengths must have {contexts} entries as batch.query_lengths, "
                f"got {len(self.kv_lengths)}"
            )
        if any(count != 1 for count in self.query_lengths[: self.num_decode]):
            raise ValueError(
                f"the first batch.num_decode = {self.num_decode} contexts must have one token, "
                f"got query_lengths {self.query_lengths[: self.num_decode]}"
            )

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lengths)

    def check_matches(self, name: str, tensor: torch.Tensor) -> None:
        """Raise ValueError unless `tensor` has a row per token and is on the batch's device."""
        if tensor.shape[0] != self.num_tokens:
            raise ValueError(
                f"{name} must have a row for each of the batch's {self.num_tokens} tokens, "
                f"got {tensor.shape[0]}"
            )
        if tensor.device != self.input_row_offsets.device:
            raise ValueError(
                f"{name} must be on {self.input_row_offsets.device} as the batch, "
                f"got {tensor.device}"
            )
