"""Ragged attention on a CPU without native kernels: exact per row, through torch's flash kernel.

That kernel walks the keys in splits of 512 with an online softmax, in fp32 inside. Measured with
AVX512 and AMX (torch 2.13, 1 and 2 threads, fp32 and bf16): the bits of a row depend on its own
keys alone, and keys that are masked are exact no-ops, as long as
- the number of query rows is a multiple of 16 (smaller or odd ones take other GEMM paths),
- the last split is 64, 128, 192, 256 or 512 keys wide (fp32 GEMMs cut other widths differently),
- a head_dim that is no multiple of 32 keeps to tiles below 64 rows (bf16 packing pads the others).
So a step becomes work items (one token, or a run of prefill tokens, against a width of keys that
keeps these rules), and items of equal shape become one gather and one call.

With AVX2 a row's bits depend on its place in the tile. So the rules are probed once; where they
fail, every token is an item of its own against whole splits: the same call for each row, exact
by construction, but a slow prefill. So it is with a soft cap, which torch's kernel does not have.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from quire.kernels.ragged_batch import RaggedBatch

SPLIT_KEYS = 512
"""Keys in one step of torch's online softmax; its own constant, on which exactness rests."""
NARROW_KEYS = 64
ROW_TILE = 16
MAX_GROUP_KEYS = 16384
"""Keys gathered at once: bounds scratch memory, and keeps it near the cache."""
MAX_WASTED_ROW_KEYS = 16384
"""Padding (rows x keys) that costs less than one more call."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a plan depends on besides the lengths of the step."""

    page_size: int
    dtype: torch.dtype
    sliding_window: int | None
    max_rows: int
    narrowest_split: int


@dataclass(frozen=True, slots=True)
class _Item:
    """`count` tokens of a context from `position`, against keys `start .. start + num_keys`."""

    context: int
    token: int
    position: int
    count: int
    start: int
    num_keys: int


@dataclass(frozen=True, slots=True)
class _Group:
    """n items of R rows and L keys that run as one call."""

    contexts: torch.Tensor
    """int64 [n, 1]"""
    columns: torch.Tensor
    """int64 [n, P], columns of the lookup table to gather."""
    unread: tuple[torch.Tensor, torch.Tensor]
    """Items and gathered keys that no token has written, or that lie before the window of all: the
    memory of others, possibly NaN."""
    tokens: torch.Tensor
    """int64 [n, R], rows of q; padding repeats the item's last token."""
    destinations: torch.Tensor
    """int64 [n * R], rows of the output; padding goes to row T, which is cut off."""
    mask: torch.Tensor
    """[n, 1, R, L] in the dtype of q, 0 or -inf."""


def flash_attention_ragged_torch(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """As `flash_attention_ragged`, for float32 and bfloat16 queries on the CPU."""
    num_tokens, _, head_dim = q_THD.shape
    page_size, dtype = k_cache.shape[2], q_THD.dtype
    settings = _Settings(scale * k_scale, soft_cap, sinks, v_scale)
    if soft_cap is None and _may_share_tiles(dtype, head_dim, torch.get_num_threads()):
        shape = _Shape(page_size, dtype, sliding_window, _max_rows(head_dim), NARROW_KEYS)
    else:
        shape = _Shape(page_size, dtype, sliding_window, 1, SPLIT_KEYS)
    lookup_table = batch.lookup_table.long()
    out_THD = q_THD.new_empty(num_tokens + 1, *q_THD.shape[1:])
    for group in _plan(batch.query_lengths, batch.kv_lengths, shape):
        pages = lookup_table[group.contexts, group.columns]
        k = _gather(k_cache, pages, group).to(dtype)
        v = _gather(v_cache, pages, group).to(dtype)
        out = _attend(q_THD[group.tokens], k, v, group.mask, settings)
        out_THD.index_copy_(0, group.destinations, out)
    return out_THD[:num_tokens]


@dataclass(frozen=True, slots=True)
class _Settings:
    """The numbers of a call."""

    score_scale: float
    soft_cap: float | None
    sinks: torch.Tensor | None
    v_scale: float

    def finished(self, out: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Outputs [..., H, D] with the scale of values, and with sinks in the denominator.

        `sums` [..., H] are the logarithms of the denominators without sinks.
        """
        if self.sinks is None and self.v_scale == 1.0:
            return out
        factor = torch.full_like(sums, self.v_scale, dtype=torch.float32)
        if self.sinks is not None:
            factor = factor * (sums.float() - self.sinks).sigmoid()
        return (out.float() * factor[..., None]).to(out.dtype)


def _gather(cache: torch.Tensor, pages: torch.Tensor, group: _Group) -> torch.Tensor:
    """Keys or values [n, K, L, D] of the group's items; zero where none is read."""
    num_pages, heads, _, head_dim = cache.shape
    rows = pages[:, None, :] * heads + torch.arange(heads)[:, None]
    # Moved as bytes: not every torch operator knows float8.
    stored = cache.view(torch.uint8).view(num_pages * heads, -1)
    gathered = stored.index_select(0, rows.flatten()).view(cache.dtype)
    gathered = gathered.view(rows.shape[0], heads, -1, head_dim)
    items, keys = group.unread
    gathered.view(torch.uint8)[items, :, keys] = 0
    return gathered[:, :, : group.mask.shape[-1]]


def _attend(
    q_nRHD: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    settings: _Settings,
) -> torch.Tensor:
    """Attention of every item: [n * R, H, D]."""
    items, rows, heads, head_dim = q_nRHD.shape
    if settings.soft_cap is not None:
        return _attend_capped(q_nRHD[:, 0], k, v, mask[:, 0, 0], settings)
    if rows > 1:
        out, sums = _flash(q_nRHD.transpose(1, 2), k, v, mask, settings.score_scale)
        out = out.transpose(1, 2).reshape(items * rows, heads, head_dim)
        return settings.finished(out, sums.transpose(1, 2).reshape(items * rows, heads))
    # One token: the query heads that share a key head are the rows, so that keys are read once.
    group = heads // k.shape[1]
    padding = -group % ROW_TILE
    q = F.pad(q_nRHD.view(items, -1, group, head_dim), (0, 0, 0, padding))
    out, sums = _flash(q, k, v, mask.expand(-1, -1, q.shape[2], -1), settings.score_scale)
    out = out[:, :, :group].reshape(items, heads, head_dim)
    return settings.finished(out, sums[:, :, :group].reshape(items, heads))


def _attend_capped(
    q_nHD: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    settings: _Settings,
) -> torch.Tensor:
    """Attention of one token per item, each in calls of its own whose shapes its position gives."""
    heads, cap = q_nHD.shape[1], settings.soft_cap
    assert cap is not None
    outs = []
    for q, keys, values, hidden in zip(q_nHD, k, v, mask.isinf(), strict=True):
        # Splits before a shorter item of a group begin do not exist for it alone.
        last = int((~hidden).nonzero()[-1])
        width = last + 1 + -(last + 1) % SPLIT_KEYS
        unseen = hidden[:width, None]
        seen_keys, seen_values = (
            tensor[:, :width].float().masked_fill(unseen, 0.0) for tensor in (keys, values)
        )
        rows = q.float().view(k.shape[1], -1, q.shape[-1])
        scores = (rows @ seen_keys.transpose(1, 2)) * settings.score_scale
        scores = (cap * (scores / cap).tanh()).masked_fill(hidden[:width], float("-inf"))
        out = (scores.softmax(-1) @ seen_values).view(heads, -1)
        outs.append(settings.finished(out, scores.logsumexp(-1).flatten()))
    return torch.stack(outs).to(q_nHD.dtype)


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [n, H, rows, D] and log-sum-exps [n, H, rows]."""
    # Not F.scaled_dot_product_attention: it may choose another kernel, with other bits.
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return out, sums


def _max_rows(head_dim: int) -> int:
    return SPLIT_KEYS if head_dim % 32 == 0 else 2 * ROW_TILE


@lru_cache(maxsize=16)
def _may_share_tiles(dtype: torch.dtype, head_dim: int, threads: int) -> bool:
    """Whether rows keep their bits at any place in any tile, and in a narrow last split.

    Probed for `threads`, the number of threads at the time of the call.
    """
    rows = min(256, _max_rows(head_dim))
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 2 * SPLIT_KEYS, head_dim, generator=generator).to(dtype)
    q = q[:, :, :rows]
    widths = (*range(NARROW_KEYS, SPLIT_KEYS // 2 + 1, NARROW_KEYS), SPLIT_KEYS)
    for width in (SPLIT_KEYS + last for last in widths):
        mask = torch.zeros(1, 1, rows, 2 * SPLIT_KEYS, dtype=dtype)
        mask[..., width:] = float("-inf")
        whole = _flash(q, k, v, mask, head_dim**-0.5)
        for start in (0, 1, 6, 11):
            tile = slice(start, start + ROW_TILE)
            part = _flash(
                q[:, :, tile],
                k[:, :, :width],
                v[:, :, :width],
                mask[:, :, tile, :width],
                head_dim**-0.5,
            )
            if not all(torch.equal(a, b[:, :, tile]) for a, b in zip(part, whole, strict=True)):
                return False
    return True


@lru_cache(maxsize=2)
def _plan(
    query_lengths: tuple[int, ...], kv_lengths: tuple[int, ...], shape: _Shape
) -> tuple[_Group, ...]:
    """The calls of a step. All layers of a step share them; some models alternate two windows."""
    num_tokens = sum(query_lengths)
    items = sorted(_items(query_lengths, kv_lengths, shape), key=lambda i: (i.count, -i.num_keys))
    groups: list[list[_Item]] = []
    wasted = 0
    for item in items:
        head = groups[-1][0] if groups else None
        if head is not None and _rows(head) == _rows(item):
            wasted += max(ROW_TILE, _rows(item)) * (head.num_keys - item.num_keys)
            full = (len(groups[-1]) + 1) * head.num_keys > MAX_GROUP_KEYS
            if head.num_keys >= item.num_keys and wasted <= MAX_WASTED_ROW_KEYS and not full:
                groups[-1].append(item)
                continue
        groups.append([item])
        wasted = 0
    return tuple(_group(items, kv_lengths, num_tokens, shape) for items in groups)


def _items(
    query_lengths: tuple[int, ...], kv_lengths: tuple[int, ...], shape: _Shape
) -> Iterator[_Item]:
    token = 0
    for context, (count, length) in enumerate(zip(query_lengths, kv_lengths, strict=True)):
        position = length - count
        while position < length:
            end = _padded(position + 1, shape.narrowest_split)
            stop = min(length, end, position + shape.max_rows)
            start = 0
            if shape.sliding_window is not None:
                # Whole splits only, so that every row meets its keys in the same splits.
                start = max(0, position - shape.sliding_window + 1) // SPLIT_KEYS * SPLIT_KEYS
            yield _Item(context, token, position, stop - position, start, end - start)
            token += stop - position
            position = stop


def _padded(num_keys: int, narrowest_split: int) -> int:
    """The least number of keys >= `num_keys` whose last split has an exact width."""
    is_wide = num_keys % SPLIT_KEYS > SPLIT_KEYS // 2
    return num_keys + -num_keys % (SPLIT_KEYS if is_wide else narrowest_split)


def _rows(item: _Item) -> int:
    return 1 if item.count == 1 else item.count + -item.count % ROW_TILE


def _group(
    items: list[_Item], kv_lengths: tuple[int, ...], num_tokens: int, shape: _Shape
) -> _Group:
    num_keys = items[0].num_keys
    step = torch.arange(_rows(items[0]))
    context, token, position, count, start = torch.tensor(
        [(i.context, i.token, i.position, i.count, i.start) for i in items]
    ).T.unsqueeze(-1)
    length = torch.tensor(kv_lengths)[context]

    page_columns = start // shape.page_size + torch.arange(-(-num_keys // shape.page_size))
    is_written = page_columns * shape.page_size < length
    columns = torch.where(is_written, page_columns, start // shape.page_size)
    gathered = columns.repeat_interleave(shape.page_size, 1) * shape.page_size
    gathered = gathered + torch.arange(shape.page_size).repeat(columns.shape[1])

    last = torch.minimum(step, count - 1)
    keys = start[..., None] + torch.arange(num_keys)
    distance = (position + last)[..., None] - keys
    visible = distance >= 0
    if shape.sliding_window is not None:
        visible &= distance < shape.sliding_window
    mask = torch.zeros(visible.shape, dtype=shape.dtype).masked_fill_(~visible, float("-inf"))
    is_unread = gathered >= length
    if shape.sliding_window is not None:
        is_unread |= gathered <= position - shape.sliding_window
    items_at, keys_at = is_unread.nonzero(as_tuple=True)
    return _Group(
        contexts=context,
        columns=columns,
        unread=(items_at, keys_at),
        tokens=token + last,
        destinations=torch.where(step < count, token + step, num_tokens).flatten(),
        mask=mask.unsqueeze(1),
    )
