"""Qwen1.5-MoE and Qwen2-MoE (https://arxiv.org/abs/2407.10671): Qwen2 with mixtures of experts, and
an expert that every token meets, weighed by a gate of its own."""

import dataclasses

from quire.pipelines.architectures.common import (
    DecoderSizes,
    gated_mlp,
    read_layer_types,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import DENSE
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.moe_parts import MoESpec, SeparateExperts
from quire.pipelines.architectures.moe_reader import read_expert_counts, router_spec
from quire.pipelines.architectures.parts import FeedForwardSpec, LinearSpec
from quire.pipelines.architectures.spec import ModelSpec


def read_qwen2_moe(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    return llama_spec(
        config,
        "Qwen2MoeForCausalLM",
        sizes,
        has_qkv_bias=config.boolean("qkv_bias", True),
        windows=_windows(config, sizes.num_layers),
        feed_forwards=qwen_feed_forwards(config, sizes, has_shared_expert=True),
    )


def qwen_feed_forwards(
    config: ConfigFile, sizes: DecoderSizes, *, has_shared_expert: bool
) -> list[FeedForwardSpec]:
    """Every `decoder_sparse_step`th layer has experts, but for those of `mlp_only_layers`."""
    step = config.integer("decoder_sparse_step", 1)
    dense = config.integers("mlp_only_layers") if config.has("mlp_only_layers") else ()
    counts = read_expert_counts(config)

    def feed_forward(index: int) -> FeedForwardSpec:
        prefix = f"model.layers.{index}.mlp."
        if index in dense or (index + 1) % step:
            return gated_mlp(prefix, sizes.hidden_size, sizes.intermediate_size)
        mixture = _mixture(config, prefix, sizes.hidden_size, counts)
        return _with_shared_expert(config, prefix, mixture) if has_shared_expert else mixture

    return [feed_forward(index) for index in range(sizes.num_layers)]


def _mixture(config: ConfigFile, prefix: str, hidden_size: int, counts: tuple[int, int]) -> MoESpec:
    num_experts, top_k = counts
    return MoESpec(
        router=router_spec(f"{prefix}gate", hidden_size, num_experts),
        experts=SeparateExperts(
            prefix=f"{prefix}experts.",
            num_experts=num_experts,
            top_k=top_k,
            hidden_size=hidden_size,
            inner_size=config.integer("moe_intermediate_size"),
        ),
        renormalize=config.boolean("norm_topk_prob", False),
    )


def _with_shared_expert(config: ConfigFile, prefix: str, mixture: MoESpec) -> MoESpec:
    hidden_size = mixture.experts.hidden_size
    return dataclasses.replace(
        mixture,
        shared=gated_mlp(
            f"{prefix}shared_expert.",
            hidden_size,
            config.integer("shared_expert_intermediate_size"),
        ),
        shared_gate=LinearSpec(
            names=(f"{prefix}shared_expert_gate",),
            in_dim=hidden_size,
            out_dims=(1,),
            encoding=DENSE,
        ),
    )


def _windows(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """`layer_types`, or where it is missing every other layer below `max_window_layers`."""
    window = (
        config.integer("sliding_window") if config.boolean("use_sliding_window", False) else None
    )
    if not config.has("layer_types"):
        end = config.integer("max_window_layers", 28, minimum=0)
        return tuple(
            window if index % 2 == 0 and index < end else None for index in range(num_layers)
        )
    allowed = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    kinds = read_layer_types(config, num_layers, allowed)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
