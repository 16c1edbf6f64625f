"""Lets transformers' models attend over our pages, through its attention interface."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quire.kernels.flash_attention_ragged import flash_attention_ragged
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.architectures.parts import KVLayerSpec
from quire.pipelines.kv_cache.storage import LayerCache


@dataclass(frozen=True)
class Step:
    """Where the tokens of a forward pass are."""

    batch: RaggedBatch
    caches: Sequence[LayerCache]


@dataclass(frozen=True)
class Mask:
    """In the place of a causal mask, of the last `window` tokens if it is one of those."""

    window: int | None


class PagedAttention:
    """The attention function of one model.

    Without a step it writes nothing and notes what each layer would cache, and in `masked` the
    layers that are told by a mask what no option says.
    """

    def __init__(self) -> None:
        self.step: Step | None = None
        self.seen: dict[int, KVLayerSpec] = {}
        self.masked: set[int] = set()

    def mask(self, *args: object, local_size: int | None = None, **options: object) -> Mask | None:
        """What transformers gives layers for a mask: the pages and positions say already who sees
        whom. `local_size` is how far a token sees."""
        return Mask(local_size) if self.step is None else None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: object,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """As transformers calls it: query [1, H, T, D], key and value [1, K, T, D]; returns
        [1, T, H, D] and no weights."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        if self.step is None:
            self.seen[layer] = KVLayerSpec(
                num_heads=key.shape[1], key_dim=key.shape[-1], value_dim=key.shape[-1]
            )
            window = options.get("sliding_window")
            if attention_mask is not None and attention_mask != Mask(window):
                self.masked.add(layer)
            return query[..., : value.shape[-1]].transpose(1, 2), None
        batch, cache = self.step.batch, self.step.caches[layer]
        pages, places = batch.slots // cache.k.shape[2], batch.slots % cache.k.shape[2]
        cache.k[pages, :, places] = key[0].transpose(0, 1)
        # The kernels want values as wide as keys; those of latent attention are narrower.
        padding = key.shape[-1] - value.shape[-1]
        cache.v[pages, :, places] = torch.nn.functional.pad(value[0].transpose(0, 1), (0, padding))
        sinks = options.get("s_aux")
        scale = options.get("scaling")
        out_THD = flash_attention_ragged(
            query[0].transpose(0, 1).contiguous(),
            cache.k,
            cache.v,
            batch,
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            sliding_window=options.get("sliding_window"),
            soft_cap=options.get("softcap"),
            sinks=None if sinks is None else sinks.float(),
        )
        return out_THD[None, ..., : value.shape[-1]], None


def register(attention: PagedAttention) -> str:
    """Tell transformers of `attention`; returns the name of the implementation, its own."""
    from transformers import AttentionInterface, AttentionMaskInterface

    name = f"quire_paged_{id(attention)}"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, attention.mask)
    return name
