"""Gemma (https://arxiv.org/abs/2403.08295), and the blocks that its successors share."""

import functools
from collections.abc import Sequence

from quire.pipelines.architectures.common import (
    DecoderSizes,
    decoder_spec,
    gated_mlp,
    llama_attention,
    read_activation,
    refuse_true,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import AttentionSpec, LayerSpec, NormSpec
from quire.pipelines.architectures.rope_spec import RopeSpec
from quire.pipelines.architectures.spec import ModelSpec

HEAD_DIM = 256
"""What a missing `head_dim` means."""


def read_gemma(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config, default_head_dim=HEAD_DIM)
    return gemma_spec(
        config,
        "GemmaForCausalLM",
        sizes,
        ropes=(sizes.rope(config),) * sizes.num_layers,
        activation=_read_activation(config),
    )


def _read_activation(config: ConfigFile) -> str:
    """The first checkpoints say gelu and mean its approximation; some add `hidden_activation`."""
    kinds = {
        key: read_activation(config, key, "gelu_pytorch_tanh").replace("gelu_tanh", "gelu")
        for key in ("hidden_act", "hidden_activation")
    }
    if config.has("hidden_activation") and kinds["hidden_activation"] != kinds["hidden_act"]:
        raise config.wrong("hidden_activation", "the same as hidden_act")
    return "gelu_tanh" if kinds["hidden_act"] == "gelu" else kinds["hidden_act"]


def _norm(config: ConfigFile, name: str, dim: int) -> NormSpec:
    return NormSpec(
        name=name,
        dim=dim,
        epsilon=config.number("rms_norm_eps"),
        weight_offset=1.0,
        multiply_before_cast=True,
    )


def _layer(
    config: ConfigFile,
    sizes: DecoderSizes,
    block: str,
    attention: AttentionSpec,
    activation: str,
    has_post_norms: bool,
) -> LayerSpec:
    def norm(name: str) -> NormSpec:
        return _norm(config, f"{block}{name}", sizes.hidden_size)

    mlp = gated_mlp(
        f"{block}mlp.", sizes.hidden_size, sizes.intermediate_size, activation=activation
    )
    first = norm("input_layernorm")
    if not has_post_norms:
        # Llama's name, although the norm is one before the feed-forward.
        second = norm("post_attention_layernorm")
        return LayerSpec(attention=attention, mlp=mlp, attention_norm=first, mlp_norm=second)
    return LayerSpec(
        attention=attention,
        mlp=mlp,
        attention_norm=first,
        attention_post_norm=norm("post_attention_layernorm"),
        mlp_norm=norm("pre_feedforward_layernorm"),
        mlp_post_norm=norm("post_feedforward_layernorm"),
    )


def gemma_spec(
    config: ConfigFile,
    architecture: str,
    sizes: DecoderSizes,
    *,
    ropes: Sequence[RopeSpec],
    activation: str,
    windows: Sequence[int | None] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    logit_soft_cap: float | None = None,
    has_post_norms: bool = False,
    has_qk_norm: bool = False,
    prefix: str = "model.",
    head_name: str = "lm_head",
) -> ModelSpec:
    """A decoder of Gemma's blocks; `ropes` and `windows` have an entry per layer."""
    refuse_true(config, "use_bidirectional_attention")
    has_bias = config.boolean("attention_bias", False)
    norm = functools.partial(_norm, config)

    def layer(index: int) -> LayerSpec:
        block = f"{prefix}layers.{index}."
        attention = llama_attention(
            sizes,
            f"{block}self_attn.",
            ropes[index],
            has_qkv_bias=has_bias,
            has_output_bias=has_bias,
            scale=scale,
            q_norm=norm(f"{block}self_attn.q_norm", sizes.head_dim) if has_qk_norm else None,
            k_norm=norm(f"{block}self_attn.k_norm", sizes.head_dim) if has_qk_norm else None,
            sliding_window=windows[index] if windows else None,
            soft_cap=soft_cap,
        )
        return _layer(config, sizes, block, attention, activation, has_post_norms)

    return decoder_spec(
        config,
        architecture,
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=norm(f"{prefix}norm", sizes.hidden_size),
        embedding_scale=sizes.hidden_size**0.5,
        is_embedding_scale_rounded=True,
        logit_soft_cap=logit_soft_cap,
        tie_by_default=True,
        prefix=prefix,
        head_name=head_name,
    )
