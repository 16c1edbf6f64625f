"""Triton: what is done to logits in place before sampling, and greedy choice."""

import torch
import triton
import triton.language as tl

from quire.kernels.activations.kernel import tanh

ENTRIES = 1024
"""Entries of a row handled at a time."""
BLOCK = 4096
"""Tokens of a program."""
NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def _option(value, row, IS_TENSOR: tl.constexpr):
    return tl.load(value + row) if IS_TENSOR else value


@triton.jit
def penalties_kernel(
    logits,
    data,
    offsets,
    frequency,
    presence,
    repetition,
    vocabulary,
    HAS_FREQUENCIES: tl.constexpr,
    HAS_PRESENCES: tl.constexpr,
    HAS_REPETITIONS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    frequency = _option(frequency, row, HAS_FREQUENCIES)
    presence = _option(presence, row, HAS_PRESENCES)
    repetition = _option(repetition, row, HAS_REPETITIONS)
    end = tl.load(offsets + row + 1).to(tl.int64)
    for start in range(tl.load(offsets + row).to(tl.int64), end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        token = tl.load(data + 2 * entry, mask=entry < end, other=-1)
        mask = (token >= 0) & (token < vocabulary)
        count = tl.load(data + 2 * entry + 1, mask=mask, other=0)
        place = logits + row * vocabulary + token
        old = tl.load(place, mask=mask, other=0.0)
        scaled = tl.where(old > 0.0, tl.div_rn(old, repetition + tl.zeros_like(old)), old)
        scaled = tl.where(old > 0.0, scaled, old * repetition)
        minus = tl.where(count > 0, frequency * count.to(tl.float32) + presence, 0.0)
        tl.store(place, scaled - minus, mask=mask)


@triton.jit
def update_frequency_kernel(data, offsets, tokens, ENTRIES: tl.constexpr):
    """Grid (rows,). The first entry with the token, else the first free one, in one pass."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + row)
    begin = tl.load(offsets + row).to(tl.int64)
    end = tl.load(offsets + row + 1).to(tl.int64)
    found = end
    free = end
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        held = tl.load(data + 2 * entry, mask=entry < end, other=-1)
        found = tl.minimum(found, tl.min(tl.where(held == token, entry, end), 0))
        free = tl.minimum(free, tl.min(tl.where(held < 0, entry, end), 0))
    is_found = (token >= 0) & (found < end)
    is_free = (token >= 0) & (found >= end) & (free < end)
    place = tl.where(is_found, found, free)
    count = tl.load(data + 2 * place + 1, mask=is_found, other=0)
    tl.store(data + 2 * place, token, mask=is_free)
    tl.store(data + 2 * place + 1, count + 1, mask=is_found | is_free)


@triton.jit(do_not_specialize=["rows", "count"])
def scatter_kernel(data, indices, fill, rows, columns, count, ENTRIES: tl.constexpr):
    """Grid (blocks of indices,)."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    row = tl.load(indices + 2 * entry, mask=entry < count, other=-1)
    column = tl.load(indices + 2 * entry + 1, mask=entry < count, other=-1)
    mask = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    value = tl.full((ENTRIES,), 0.0, tl.float32) + fill
    place = data + row.to(tl.int64) * columns + column
    tl.store(place, value.to(data.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def bitmask_kernel(
    logits, bitmask, rows, count, vocabulary, words, HAS_ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (rows to mask, blocks of tokens). Only masked logits are written, none is read."""
    row = tl.program_id(0).to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + row).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_row = (row >= 0) & (row < count)
    mask = is_row & (token < vocabulary)
    word = tl.load(bitmask + row * words + token // 32, mask=mask & (token // 32 < words), other=0)
    is_masked = mask & (((word >> (token % 32)) & 1) == 0)
    minus_infinity = tl.full((BLOCK,), float("-inf"), tl.float32)
    tl.store(logits + row * vocabulary + token, minus_infinity, mask=is_masked)


@triton.jit
def bias_kernel(logits, tokens, bias, offsets, vocabulary, ENTRIES: tl.constexpr):
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(offsets + row + 1).to(tl.int64)
    for start in range(tl.load(offsets + row).to(tl.int64), end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        token = tl.load(tokens + entry, mask=entry < end, other=-1)
        mask = (token >= 0) & (token < vocabulary)
        place = logits + row * vocabulary + token
        old = tl.load(place, mask=mask, other=0.0)
        tl.store(place, old + tl.load(bias + entry, mask=mask, other=0.0), mask=mask)


@triton.jit
def soft_cap_kernel(logits, out, cap, vocabulary, BLOCK: tl.constexpr):
    """Grid (rows, blocks of tokens)."""
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = token < vocabulary
    place = tl.program_id(0).to(tl.int64) * vocabulary + token
    value = tl.load(logits + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, (cap * tanh(value / cap)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def greedy_block_kernel(logits, bests, winners, sums, vocabulary, BLOCK: tl.constexpr):
    """Grid (rows, blocks of tokens). `sums` are of exp(logit - the block's best)."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
    best = tl.max(value, 0)
    place = row * tl.num_programs(1) + tl.program_id(1)
    base = tl.where(best > float("-inf"), best, 0.0)
    tl.store(bests + place, best)
    tl.store(winners + place, tl.min(tl.where(value == best, token, NO_TOKEN), 0))
    tl.store(sums + place, tl.sum(tl.exp(value - base), 0))


@triton.jit
def greedy_row_kernel(
    bests, winners, sums, tokens, log_probabilities, blocks, vocabulary, BLOCKS: tl.constexpr
):
    """Grid (rows,). The log-probability of the best token is -log(sum of exp(logit - best))."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    mask = block < blocks
    value = tl.load(bests + row * blocks + block, mask=mask, other=float("-inf"))
    best = tl.max(value, 0)
    winner = tl.load(winners + row * blocks + block, mask=mask, other=NO_TOKEN)
    total = tl.load(sums + row * blocks + block, mask=mask, other=0.0)
    base = tl.where(best > float("-inf"), best, 0.0)
    total = tl.sum(tl.where(total > 0.0, total * tl.exp(value - base), total), 0)
    winner = tl.min(tl.where(value == best, winner, NO_TOKEN), 0)
    tl.store(tokens + row, tl.where(winner < vocabulary, winner, 0))
    tl.store(log_probabilities + row, -tl.log(total))


def apply_penalties_to_logits_triton(
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
    options = [
        value if isinstance(value, torch.Tensor) else float(value)
        for value in (frequency_penalty, presence_penalty, repetition_penalty)
    ]
    if rows:
        penalties_kernel[(rows,)](
            logits_buffer,
            frequency_data,
            frequency_offsets,
            *options,
            vocabulary,
            *(isinstance(value, torch.Tensor) for value in options),
            ENTRIES,
            num_warps=4,
        )


def update_frequency_data_triton(
    frequency_data: torch.Tensor, frequency_offsets: torch.Tensor, tokens: torch.Tensor
) -> None:
    """As `update_frequency_data`."""
    if len(tokens):
        update_frequency_kernel[(len(tokens),)](
            frequency_data, frequency_offsets, tokens, ENTRIES, num_warps=4
        )


def scatter_set_constant_triton(data: torch.Tensor, indices: torch.Tensor, fill_val: float) -> None:
    """As `scatter_set_constant`."""
    rows, columns = data.shape
    if len(indices):
        scatter_kernel[(triton.cdiv(len(indices), ENTRIES),)](
            data, indices, float(fill_val), rows, columns, len(indices), ENTRIES, num_warps=4
        )


def apply_token_bitmask_triton(
    logits: torch.Tensor, bitmask: torch.Tensor, rows: torch.Tensor | None = None
) -> None:
    """As `apply_token_bitmask`."""
    count, vocabulary = logits.shape
    masked = count if rows is None else len(rows)
    if masked:
        bitmask_kernel[(masked, triton.cdiv(vocabulary, BLOCK))](
            logits,
            bitmask,
            bitmask if rows is None else rows,
            count,
            vocabulary,
            bitmask.shape[1],
            rows is not None,
            BLOCK,
            num_warps=4,
        )


def apply_logit_bias_triton(
    logits: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor, offsets: torch.Tensor
) -> None:
    """As `apply_logit_bias`."""
    rows, vocabulary = logits.shape
    if rows:
        bias_kernel[(rows,)](logits, tokens, bias, offsets, vocabulary, ENTRIES, num_warps=4)


def logits_soft_cap_triton(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """As `logits_soft_cap`."""
    rows, vocabulary = logits.shape
    out = torch.empty_like(logits)
    if out.numel():
        grid = (rows, triton.cdiv(vocabulary, BLOCK))
        soft_cap_kernel[grid](logits, out, float(cap), vocabulary, BLOCK, num_warps=8)
    return out


def greedy_with_logprobs_triton(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `greedy_with_logprobs`."""
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, BLOCK)
    tokens = logits.new_empty(rows, dtype=torch.int32)
    log_probabilities = logits.new_empty(rows)
    bests, sums = logits.new_empty(rows, blocks), logits.new_empty(rows, blocks)
    winners = logits.new_empty(rows, blocks, dtype=torch.int32)
    if rows:
        greedy_block_kernel[(rows, blocks)](
            logits, bests, winners, sums, vocabulary, BLOCK, num_warps=8
        )
        greedy_row_kernel[(rows,)](
            bests,
            winners,
            sums,
            tokens,
            log_probabilities,
            blocks,
            vocabulary,
            triton.next_power_of_2(blocks),
            num_warps=4,
        )
    return tokens, log_probabilities
