"""GPT-OSS (https://arxiv.org/abs/2508.10925): mixtures of experts, attention sinks, and a window in
every other layer."""

import dataclasses

from quire.pipelines.architectures.common import DecoderSizes, decoder_spec, llama_attention
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.layer_types import local_windows, read_kinds
from quire.pipelines.architectures.moe_parts import (
    MXFP4_BLOCK,
    GateSpec,
    MoESpec,
    Mxfp4Experts,
    StackedExperts,
)
from quire.pipelines.architectures.moe_reader import read_expert_counts, router_spec
from quire.pipelines.architectures.parts import AttentionSpec, LayerSpec, NormSpec, TensorPart
from quire.pipelines.architectures.rope_spec import RopeSpec, read_rope
from quire.pipelines.architectures.spec import ModelSpec


def read_gpt_oss(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    if not config.has("dtype") and not config.has("torch_dtype"):
        # The published files declare none; what they hold is bfloat16.
        config = config.with_defaults({"dtype": "bfloat16"})
    sizes = DecoderSizes.read(config, default_head_dim=64)
    rope = _rope(config, sizes)
    windows = local_windows(config, read_kinds(config, sizes.num_layers, 2))

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}."
        return LayerSpec(
            attention=_attention(config, sizes, f"{prefix}self_attn.", rope, windows[index]),
            mlp=_mixture(config, sizes, f"{prefix}mlp."),
            attention_norm=_norm(config, sizes, f"{prefix}input_layernorm"),
            mlp_norm=_norm(config, sizes, f"{prefix}post_attention_layernorm"),
        )

    return decoder_spec(
        config,
        "GptOssForCausalLM",
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=_norm(config, sizes, "model.norm"),
    )


def _rope(config: ConfigFile, sizes: DecoderSizes) -> RopeSpec:
    if not config.has("rope_parameters") and not config.has("rope_scaling"):
        raise config.wrong("rope_scaling", "a JSON object")
    return read_rope(
        config,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_position_embeddings,
        default_theta=150000.0,
    )


def _norm(config: ConfigFile, sizes: DecoderSizes, name: str) -> NormSpec:
    return NormSpec(
        name=name,
        dim=sizes.hidden_size,
        epsilon=config.number("rms_norm_eps"),
        multiply_before_cast=True,
    )


def _attention(
    config: ConfigFile, sizes: DecoderSizes, prefix: str, rope: RopeSpec, window: int | None
) -> AttentionSpec:
    has_bias = config.boolean("attention_bias", True)
    attention = llama_attention(
        sizes,
        prefix,
        rope,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        sliding_window=window,
    )
    sinks = TensorPart(f"{prefix}sinks", (sizes.num_heads,))
    return dataclasses.replace(attention, sinks=sinks)


def _mixture(config: ConfigFile, sizes: DecoderSizes, prefix: str) -> MoESpec:
    num_experts, top_k = read_expert_counts(config)
    return MoESpec(
        router=router_spec(f"{prefix}router", sizes.hidden_size, num_experts, has_bias=True),
        experts=_experts(config)(
            prefix=f"{prefix}experts.",
            num_experts=num_experts,
            top_k=top_k,
            hidden_size=sizes.hidden_size,
            inner_size=sizes.intermediate_size,
            has_bias=True,
            gate=GateSpec(
                alpha=config.number("swiglu_alpha", 1.702),
                limit=config.number("swiglu_limit", 7.0),
                up_offset=1.0,
            ),
            interleaved=True,
        ),
        scoring="softmax_top_k",
    )


def _experts(config: ConfigFile) -> type[StackedExperts]:
    """How the experts are stored; all else is plain numbers either way."""
    if config.section("quantization_config").string("quant_method", "") != "mxfp4":
        return StackedExperts
    for key in ("hidden_size", "intermediate_size"):
        if config.integer(key) % MXFP4_BLOCK:
            raise config.wrong(key, f"a multiple of {MXFP4_BLOCK}, as MXFP4 blocks are")
    return Mxfp4Experts
