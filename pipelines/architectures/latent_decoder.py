"""Decoders with multi-head latent attention and DeepSeek's weight names. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quire.pipelines.architectures.common import DecoderSizes, rms_norm
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.latent_parts import (
    MAX_LATENT_DIM,
    MAX_LATENT_ROPE_DIM,
    AbsorbedSpec,
    LatentAttentionSpec,
)
from quire.pipelines.architectures.parts import FeedForwardSpec, LayerSpec, LinearSpec
from quire.pipelines.architectures.rope_spec import RopeSpec, read_rope

LOW_RANK_NORM_EPSILON = 1e-6
"""Of the norms inside attention: DeepSeek's modelling code gives them no `rms_norm_eps`."""


@dataclass(frozen=True, kw_only=True)
class LatentSizes:
    """A decoder's sizes, and those of its heads; `q_lora_rank` None: queries are projected at once."""

    decoder: DecoderSizes
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    @classmethod
    def read(cls, config: ConfigFile, *, default_value_dim: int | None = None) -> "LatentSizes":
        """`default_value_dim` is meant where `v_head_dim` is missing.

        Raises:
            ModelError: a key is missing or wrong, or latents are such as the kernel does not take.
        """
        rope_dim = _width(config, "qk_rope_head_dim", MAX_LATENT_ROPE_DIM)
        decoder = DecoderSizes.read(config, default_head_dim=rope_dim)
        if decoder.num_kv_heads != decoder.num_heads:
            raise config.wrong("num_key_value_heads", f"{decoder.num_heads}, as attention heads")
        return cls(
            decoder=decoder,
            q_lora_rank=None if config.is_null("q_lora_rank") else config.integer("q_lora_rank"),
            kv_lora_rank=_width(config, "kv_lora_rank", MAX_LATENT_DIM),
            nope_dim=config.integer("qk_nope_head_dim"),
            rope_dim=rope_dim,
            value_dim=config.integer("v_head_dim", default_value_dim),
        )

    def rope(self, config: ConfigFile, *, is_interleaved: bool) -> RopeSpec:
        """The rotary embedding of the `rope_dim` last numbers of a query."""
        return read_rope(
            config,
            head_dim=self.rope_dim,
            max_position_embeddings=self.decoder.max_position_embeddings,
            is_interleaved=is_interleaved,
        )


def _width(config: ConfigFile, key: str, most: int) -> int:
    value = config.integer(key)
    if value % 8 or value > most:
        raise config.wrong(key, f"a multiple of 8 up to {most}")
    return value


def latent_scale(rope: RopeSpec, head_dim: int) -> float:
    """The factor on scores: with YaRN also the square of its magnitude at `mscale_all_dim`.

    The tables have that of `mscale` over that of `mscale_all_dim`, and turn a part of a head only:
    together the part that turns is scaled by `mscale`, the rest by `mscale_all_dim` (DeepSeek-V2).
    """
    scale: float = head_dim**-0.5
    if not rope.mscale_all_dim or rope.factor <= 1:
        return scale
    magnitude = 0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0
    return scale * magnitude * magnitude


def latent_attention(
    sizes: LatentSizes, prefix: str, rope: RopeSpec, *, has_bias: bool = False
) -> LatentAttentionSpec:
    """With DeepSeek's weight names; `prefix` is `model.layers.0.self_attn.` or alike.

    `has_bias`: of the projections from and to the hidden size, but for one of the queries at once.
    """
    hidden, heads = sizes.decoder.hidden_size, sizes.decoder.num_heads
    head_dim = sizes.nope_dim + sizes.rope_dim

    def linear(name: str, in_dim: int, out_dim: int, *, has_bias: bool = False) -> LinearSpec:
        return LinearSpec(
            names=(f"{prefix}{name}",), in_dim=in_dim, out_dims=(out_dim,), has_bias=has_bias
        )

    q_a = q_a_norm = None
    q = linear("q_proj", hidden, heads * head_dim)
    if rank := sizes.q_lora_rank:
        q_a = linear("q_a_proj", hidden, rank, has_bias=has_bias)
        q_a_norm = rms_norm(f"{prefix}q_a_layernorm", rank, LOW_RANK_NORM_EPSILON)
        q = linear("q_b_proj", rank, heads * head_dim)
    latent = sizes.kv_lora_rank
    return LatentAttentionSpec(
        num_heads=heads,
        nope_dim=sizes.nope_dim,
        rope_dim=sizes.rope_dim,
        value_dim=sizes.value_dim,
        latent_dim=latent,
        q_a=q_a,
        q_a_norm=q_a_norm,
        q=q,
        kv_a=linear("kv_a_proj_with_mqa", hidden, latent + sizes.rope_dim, has_bias=has_bias),
        kv_a_norm=rms_norm(f"{prefix}kv_a_layernorm", latent, LOW_RANK_NORM_EPSILON),
        kv_b=AbsorbedSpec(
            names=(f"{prefix}kv_b_proj",),
            in_dim=latent,
            out_dims=(heads * (sizes.nope_dim + sizes.value_dim),),
        ),
        output=linear("o_proj", heads * sizes.value_dim, hidden, has_bias=has_bias),
        rope=rope,
        scale=latent_scale(rope, head_dim),
    )


def latent_layers(
    config: ConfigFile,
    sizes: LatentSizes,
    feed_forward: Sequence[FeedForwardSpec],
    *,
    is_interleaved: bool,
    residual_multiplier: float = 1.0,
) -> list[LayerSpec]:
    """Llama's blocks with latent attention; `feed_forward` has an entry per layer."""
    epsilon = config.number("rms_norm_eps")
    rope = sizes.rope(config, is_interleaved=is_interleaved)
    has_bias = config.boolean("attention_bias", False)
    hidden_size = sizes.decoder.hidden_size
    return [
        LayerSpec(
            attention=latent_attention(
                sizes, f"model.layers.{index}.self_attn.", rope, has_bias=has_bias
            ),
            mlp=mlp,
            attention_norm=rms_norm(f"model.layers.{index}.input_layernorm", hidden_size, epsilon),
            mlp_norm=rms_norm(
                f"model.layers.{index}.post_attention_layernorm", hidden_size, epsilon
            ),
            residual_multiplier=residual_multiplier,
        )
        for index, mlp in enumerate(feed_forward)
    ]
