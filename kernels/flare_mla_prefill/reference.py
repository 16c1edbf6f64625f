"""Plan, decompression and attention of latent prefill in plain torch: the definition of correct."""

import math

import torch

from quire.kernels.ragged_batch import RaggedBatch


def flare_mla_prefill_plan_reference(
    batch: RaggedBatch, buffer_size: int, max_chunks: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `flare_mla_prefill_plan`."""
    lengths = batch.cache_lengths.long() + batch.input_row_offsets.long().diff()
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    first = buffer_size * torch.arange(max_chunks, device=lengths.device)[:, None]
    row_offsets = (ends - first).clamp(0, buffer_size).int()
    cache_offsets = torch.minimum((first - ends[:-1]).clamp(min=0), lengths).int()
    return row_offsets, cache_offsets, row_offsets[:, -1].clone()


def flare_mla_decompress_k_cache_reference(
    latent_cache: torch.Tensor,
    lookup_table: torch.Tensor,
    buffer_row_offsets_1d: torch.Tensor,
    cache_offsets_1d: torch.Tensor,
    buffer_length: torch.Tensor,
    weight: torch.Tensor,
    buffer_size: int,
) -> torch.Tensor:
    """As `flare_mla_decompress_k_cache`, computed in float32."""
    page_size, latent_dim = latent_cache.shape[1], weight.shape[1]
    row = torch.arange(int(buffer_length), device=latent_cache.device, dtype=torch.int32)
    context = torch.searchsorted(buffer_row_offsets_1d, row, right=True) - 1
    key = cache_offsets_1d[context] + row - buffer_row_offsets_1d[context]
    page = lookup_table[context, key // page_size].long()
    latents = latent_cache[page, key % page_size, :latent_dim]
    out = weight.new_zeros(buffer_size, weight.shape[0])
    out[: len(row)] = (latents.float() @ weight.float().T).to(weight.dtype)
    return out


def flare_mla_prefill_ragged_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: RaggedBatch,
    buffer_row_offsets: torch.Tensor,
    cache_offsets: torch.Tensor,
    *,
    scale: float,
    latent_cache: torch.Tensor | None = None,
    qk_rope_dim: int = 64,
    prev_output: torch.Tensor | None = None,
    prev_softmax_info: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `flare_mla_prefill_ragged`, computed in float32 (float64 for float64 queries)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    tokens, heads, _ = q.shape
    out = q.new_empty(tokens, heads, v.shape[2], dtype=wide)
    info = q.new_empty(tokens, heads, 2, dtype=torch.float32)
    rows, firsts = buffer_row_offsets.tolist(), cache_offsets.tolist()
    start = 0
    for context, count in enumerate(batch.query_lengths):
        chunk = slice(rows[context], rows[context + 1])
        key = torch.arange(chunk.stop - chunk.start, device=q.device) + firsts[context]
        keys, values = k[chunk].to(wide), v[chunk].to(wide)
        if latent_cache is not None:
            page_size = latent_cache.shape[1]
            page = batch.lookup_table[context].long()[key // page_size]
            rope = latent_cache[page, key % page_size, -qk_rope_dim:].to(wide)
            keys = torch.cat((keys, rope[:, None].expand(-1, heads, -1)), -1)
        mine = slice(start, start + count)
        scores = torch.einsum("qhd,khd->qhk", q[mine].to(wide), keys) * scale
        hidden = batch.positions[mine, None, None] < key
        scores = scores.masked_fill(hidden, float("-inf"))
        # One more score that no row sees, as a chunk may have no key of the context.
        top = torch.nn.functional.pad(scores, (0, 1), value=float("-inf")).amax(-1, keepdim=True)
        weights = (scores - top.nan_to_num(neginf=0.0)).exp()
        total = weights.sum(-1, keepdim=True)
        out[mine] = torch.einsum("qhk,khd->qhd", weights, values) / total.clamp(min=1e-30)
        info[mine] = torch.cat((top * math.log2(math.e), total), -1).float()
        start += count
    if prev_output is not None and prev_softmax_info is not None:
        out, info = _merged(prev_output.to(wide), prev_softmax_info, out, info)
    return out.to(output_dtype or q.dtype), info


def _merged(
    earlier: torch.Tensor, earlier_info: torch.Tensor, later: torch.Tensor, later_info: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and softmax info over the keys of both."""
    infos = torch.stack((earlier_info, later_info))
    top = infos[..., 0].amax(0)
    sums = infos[..., 1] * (infos[..., 0] - top.nan_to_num(neginf=0.0)).exp2()
    total = sums.sum(0)
    shares = (sums / total.clamp(min=1e-30)).to(later.dtype)[..., None]
    return shares[0] * earlier + shares[1] * later, torch.stack((top, total), -1)
