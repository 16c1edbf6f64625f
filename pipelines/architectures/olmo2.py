"""OLMo 2 (https://arxiv.org/abs/2501.00656): norms only after a part, and of whole rows of q and k."""

from collections.abc import Sequence

from quire.pipelines.architectures.common import (
    DecoderSizes,
    decoder_spec,
    gated_mlp,
    llama_attention,
    read_activation,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import LayerSpec, NormSpec
from quire.pipelines.architectures.rope_spec import RopeSpec
from quire.pipelines.architectures.spec import ModelSpec


def read_olmo2(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    ropes = (sizes.rope(config),) * sizes.num_layers
    return olmo2_spec(config, "Olmo2ForCausalLM", sizes, ropes=ropes)


def olmo2_spec(
    config: ConfigFile,
    architecture: str,
    sizes: DecoderSizes,
    *,
    ropes: Sequence[RopeSpec],
    windows: Sequence[int | None] | None = None,
) -> ModelSpec:
    """A decoder of OLMo 2's blocks; `ropes` and `windows` have an entry per layer."""
    if config.has("clip_qkv"):
        raise config.wrong("clip_qkv", "nothing")
    return post_norm_spec(
        config,
        architecture,
        sizes,
        ropes=ropes,
        windows=windows or (None,) * sizes.num_layers,
        q_norm_dim=sizes.num_heads * sizes.head_dim,
        k_norm_dim=sizes.num_kv_heads * sizes.head_dim,
        multiply_before_cast=True,
        has_bias=config.boolean("attention_bias", False),
    )


def post_norm_spec(
    config: ConfigFile,
    architecture: str,
    sizes: DecoderSizes,
    *,
    ropes: Sequence[RopeSpec],
    windows: Sequence[int | None],
    q_norm_dim: int,
    k_norm_dim: int,
    multiply_before_cast: bool = False,
    has_bias: bool = False,
) -> ModelSpec:
    """A decoder of blocks that have a norm after each part and none before."""

    def norm(name: str, dim: int = sizes.hidden_size) -> NormSpec:
        return NormSpec(
            name=f"model.{name}",
            dim=dim,
            epsilon=config.number("rms_norm_eps"),
            multiply_before_cast=multiply_before_cast,
        )

    def layer(index: int) -> LayerSpec:
        block = f"layers.{index}."
        return LayerSpec(
            attention=llama_attention(
                sizes,
                f"model.{block}self_attn.",
                ropes[index],
                has_qkv_bias=has_bias,
                has_output_bias=has_bias,
                q_norm=norm(f"{block}self_attn.q_norm", q_norm_dim),
                k_norm=norm(f"{block}self_attn.k_norm", k_norm_dim),
                sliding_window=windows[index],
            ),
            mlp=gated_mlp(
                f"model.{block}mlp.",
                sizes.hidden_size,
                sizes.intermediate_size,
                activation=read_activation(config),
            ),
            attention_post_norm=norm(f"{block}post_attention_layernorm"),
            mlp_post_norm=norm(f"{block}post_feedforward_layernorm"),
        )

    layers = [layer(index) for index in range(sizes.num_layers)]
    return decoder_spec(config, architecture, sizes, layers, final_norm=norm("norm"))
