"""DeepSeek-V2 (https://arxiv.org/abs/2405.04434), V3 (https://arxiv.org/abs/2412.19437) and
whatever has its configuration (R1, Kimi K2, Moonlight), and the small GLM-4 mixture like it."""

import dataclasses
from collections.abc import Callable

from quire.pipelines.architectures.common import (
    decoder_spec,
    gated_mlp,
    read_activation,
    rms_norm,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import DENSE
from quire.pipelines.architectures.latent_decoder import LatentSizes, latent_layers
from quire.pipelines.architectures.moe_parts import MoESpec, RouterSpec, SeparateExperts
from quire.pipelines.architectures.moe_reader import read_expert_counts
from quire.pipelines.architectures.parts import FeedForwardSpec, MLPSpec, TensorPart
from quire.pipelines.architectures.spec import ModelSpec


def read_deepseek_v2(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    _expect(config, "scoring_func", "softmax")
    if config.boolean("norm_topk_prob", False):
        raise config.wrong("norm_topk_prob", "false")
    method = config.string("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise config.wrong("topk_method", "greedy or group_limited_greedy")

    def mixture(prefix: str) -> MoESpec:
        mixed = _mixture(config, prefix)
        if method == "greedy":
            return mixed
        num_groups, top_k_groups = _groups(config, mixed)
        return dataclasses.replace(mixed, num_groups=num_groups, top_k_groups=top_k_groups)

    return _deepseek(
        config, "DeepseekV2ForCausalLM", mixture, num_dense=0, is_interleaved=True, num_extra=0
    )


def read_deepseek_v3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return _v3(config, "DeepseekV3ForCausalLM", num_dense=3)


def read_glm4_moe_lite(config: ConfigFile) -> ModelSpec:
    """GLM-4.7-Flash: DeepSeek-V3 with other sizes, and `mlp_layer_types` where they are said.

    Raises:
        ModelError: a key is missing or wrong.
    """
    return _v3(config, "Glm4MoeLiteForCausalLM", num_dense=1)


def _v3(config: ConfigFile, architecture: str, *, num_dense: int) -> ModelSpec:
    _expect(config, "scoring_func", "sigmoid")
    _expect(config, "topk_method", "noaux_tc")

    def mixture(prefix: str) -> MoESpec:
        mixed = _mixture(config, prefix)
        num_groups, top_k_groups = _groups(config, mixed)
        if num_groups > 1 and mixed.experts.num_experts < 2 * num_groups:
            raise config.wrong("n_group", "groups of at least 2 experts")
        return dataclasses.replace(
            mixed,
            correction_bias=TensorPart(
                f"{prefix}gate.e_score_correction_bias", (mixed.experts.num_experts,)
            ),
            scoring="sigmoid",
            renormalize=config.boolean("norm_topk_prob", True),
            # Without a default: transformers has another for each architecture.
            routed_scaling=config.number("routed_scaling_factor"),
            num_groups=num_groups,
            top_k_groups=top_k_groups,
            group_score="top2_sum",
        )

    key = "num_mtp_layers" if config.has("num_mtp_layers") else "num_nextn_predict_layers"
    return _deepseek(
        config,
        architecture,
        mixture,
        num_dense=num_dense,
        is_interleaved=config.boolean("rope_interleave", True),
        num_extra=config.integer(key, 1, minimum=0),
    )


def _deepseek(
    config: ConfigFile,
    architecture: str,
    mixture: Callable[[str], MoESpec],
    *,
    num_dense: int,
    is_interleaved: bool,
    num_extra: int,
) -> ModelSpec:
    """`mixture` gives the experts under a prefix. `num_dense` is the default of the key. The
    `num_extra` layers after the last predict further tokens and are left unread."""
    sizes = LatentSizes.read(config, default_value_dim=128)
    num_layers = sizes.decoder.num_layers
    is_sparse = _sparse_layers(config, num_layers, num_dense)

    def feed_forward(index: int) -> FeedForwardSpec:
        prefix = f"model.layers.{index}.mlp."
        if is_sparse[index]:
            return mixture(prefix)
        return _mlp(config, prefix, config.integer("intermediate_size"))

    layers = latent_layers(
        config,
        sizes,
        [feed_forward(index) for index in range(num_layers)],
        is_interleaved=is_interleaved,
    )
    spec = decoder_spec(
        config,
        architecture,
        sizes.decoder,
        layers,
        final_norm=rms_norm("model.norm", sizes.decoder.hidden_size, config.number("rms_norm_eps")),
    )
    extra = tuple(f"model.layers.{num_layers + index}." for index in range(num_extra))
    return dataclasses.replace(spec, ignored_weights=(*spec.ignored_weights, *extra))


def _sparse_layers(config: ConfigFile, num_layers: int, num_dense: int) -> tuple[bool, ...]:
    """Which layers have experts."""
    if config.has("mlp_layer_types"):
        kinds = config.strings("mlp_layer_types")
        if len(kinds) != num_layers or not set(kinds) <= {"dense", "sparse"}:
            raise config.wrong("mlp_layer_types", f"{num_layers} of dense or sparse")
        return tuple(kind == "sparse" for kind in kinds)
    first = config.integer("first_k_dense_replace", num_dense, minimum=0)
    period = config.integer("moe_layer_freq", 1)
    has_mixtures = config.has("n_routed_experts")
    return tuple(
        has_mixtures and index >= first and index % period == 0 for index in range(num_layers)
    )


def _mlp(config: ConfigFile, prefix: str, inner_size: int) -> MLPSpec:
    return gated_mlp(
        prefix,
        config.integer("hidden_size"),
        inner_size,
        activation=read_activation(config),
        has_bias=config.boolean("mlp_bias", False),
    )


def _mixture(config: ConfigFile, prefix: str) -> MoESpec:
    """Softmax over all experts, and experts that every token meets as one wide MLP."""
    num_experts, top_k = read_expert_counts(config, ("n_routed_experts",))
    hidden_size, inner_size = config.integer("hidden_size"), config.integer("moe_intermediate_size")
    shared = None
    if config.has("n_shared_experts") and not config.is_zero("n_shared_experts"):
        width = inner_size * config.integer("n_shared_experts")
        shared = _mlp(config, f"{prefix}shared_experts.", width)
    return MoESpec(
        router=RouterSpec(
            names=(f"{prefix}gate",),
            in_dim=hidden_size,
            out_dims=(num_experts,),
            in_float32=True,
            # A parameter of the router itself, not a linear layer that quantizers find.
            encoding=DENSE,
        ),
        experts=SeparateExperts(
            prefix=f"{prefix}experts.",
            num_experts=num_experts,
            top_k=top_k,
            hidden_size=hidden_size,
            inner_size=inner_size,
        ),
        shared=shared,
        routed_scaling=config.number("routed_scaling_factor", 1.0),
    )


def _groups(config: ConfigFile, mixed: MoESpec) -> tuple[int, int]:
    """`n_group` and `topk_group`, of which a token's experts are."""
    experts = mixed.experts
    num_groups = config.integer("n_group")
    if experts.num_experts % num_groups:
        raise config.wrong("n_group", f"a divisor of {experts.num_experts} experts")
    top_k_groups = config.integer("topk_group")
    if not top_k_groups <= num_groups:
        raise config.wrong("topk_group", f"at most the {num_groups} groups")
    if experts.top_k > experts.num_experts // num_groups * top_k_groups:
        raise config.wrong("topk_group", f"groups of at least {experts.top_k} experts in all")
    return num_groups, top_k_groups


def _expect(config: ConfigFile, key: str, value: str) -> None:
    if config.string(key, value) != value:
        raise config.wrong(key, value)
