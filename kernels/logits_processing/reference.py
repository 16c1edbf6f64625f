"""Logits processing in plain torch: the definition of correct, and the CPU path."""

import torch

from quire.kernels.activations.reference import tanh


def apply_penalties_to_logits_reference(
    logits_buffer: torch.Tensor,
    frequency_data: torch.Tensor,
    frequency_offsets: torch.Tensor,
    *,
    frequency_penalty: torch.Tensor | float = 0.0,
    presence_penalty: torch.Tensor | float = 0.0,
    repetition_penalty: torch.Tensor | float = 1.0,
) -> None:
    """As `apply_penalties_to_logits`."""
    rows, vocabulary = logits_buffer.shape

    def of_entries(value: torch.Tensor | float) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device=row.device).expand(rows)[row]

    row, entry = _rows_and_entries(frequency_offsets)
    token, count = frequency_data.long()[entry].unbind(1)
    is_used = (token >= 0) & (token < vocabulary)
    row, token, count = row[is_used], token[is_used], count[is_used]
    old = logits_buffer[row, token]
    repetition = of_entries(repetition_penalty)
    scaled = torch.where(old > 0, old / repetition, old * repetition)
    minus = of_entries(frequency_penalty) * count + of_entries(presence_penalty)
    logits_buffer[row, token] = scaled - torch.where(count > 0, minus, 0.0)


def update_frequency_data_reference(
    frequency_data: torch.Tensor, frequency_offsets: torch.Tensor, tokens: torch.Tensor
) -> None:
    """As `update_frequency_data`."""
    offsets = frequency_offsets.tolist()
    for row, token in enumerate(tokens.tolist()):
        entries = frequency_data[offsets[row] : offsets[row + 1]]
        found = (entries[:, 0] == token).nonzero()[:, 0]
        free = (entries[:, 0] < 0).nonzero()[:, 0]
        if token < 0:
            continue
        if len(found):
            entries[found[0], 1] += 1
        elif len(free):
            entries[free[0]] = entries.new_tensor([token, 1])


def scatter_set_constant_reference(
    data: torch.Tensor, indices: torch.Tensor, fill_val: float
) -> None:
    """As `scatter_set_constant`."""
    row, column = indices.long().unbind(1)
    is_inside = (row >= 0) & (row < data.shape[0]) & (column >= 0) & (column < data.shape[1])
    data[row[is_inside], column[is_inside]] = fill_val


def apply_token_bitmask_reference(
    logits: torch.Tensor, bitmask: torch.Tensor, rows: torch.Tensor | None = None
) -> None:
    """As `apply_token_bitmask`."""
    count, vocabulary = logits.shape
    index = torch.arange(count, device=logits.device) if rows is None else rows.long()
    index = index[(index >= 0) & (index < count)]
    bit = torch.arange(32, dtype=torch.int32, device=logits.device)
    is_allowed = (bitmask[index, :, None] >> bit & 1).bool()
    is_masked = torch.ones(len(index), vocabulary, dtype=torch.bool, device=logits.device)
    covered = min(vocabulary, 32 * bitmask.shape[1])
    is_masked[:, :covered] = ~is_allowed.flatten(1)[:, :covered]
    logits[index] = logits[index].masked_fill(is_masked, -torch.inf)


def apply_logit_bias_reference(
    logits: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor, offsets: torch.Tensor
) -> None:
    """As `apply_logit_bias`."""
    row, entry = _rows_and_entries(offsets)
    token = tokens.long()[entry]
    is_used = (token >= 0) & (token < logits.shape[1])
    logits[row[is_used], token[is_used]] += bias[entry[is_used]]


def logits_soft_cap_reference(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """As `logits_soft_cap`."""
    return (tanh(logits.float() / cap) * cap).to(logits.dtype)


def greedy_with_logprobs_reference(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `greedy_with_logprobs`."""
    tokens = logits.argmax(-1)
    log_probabilities = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return tokens.to(torch.int32), log_probabilities


def _rows_and_entries(offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The row and the place of each entry that offsets [B + 1] delimit."""
    entry = torch.arange(int(offsets[0]), int(offsets[-1]), device=offsets.device)
    return torch.repeat_interleave(offsets.long().diff()), entry
