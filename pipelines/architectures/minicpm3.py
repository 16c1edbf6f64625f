"""MiniCPM3 (https://arxiv.org/abs/2404.06395): MiniCPM's scales around latent attention."""

import math

from quire.pipelines.architectures.common import (
    decoder_spec,
    gated_mlp,
    read_activation,
    rms_norm,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.latent_decoder import LatentSizes, latent_layers
from quire.pipelines.architectures.spec import ModelSpec


def read_minicpm3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    hidden_size = config.integer("hidden_size")
    value_dim = max(hidden_size // config.integer("num_attention_heads"), 1)
    sizes = LatentSizes.read(config, default_value_dim=value_dim)
    num_layers = sizes.decoder.num_layers
    activation = read_activation(config)
    has_bias = config.boolean("mlp_bias", False)
    # null turns a scale off; the defaults are those of MiniCPM3-4B.
    no_depth, no_base = config.is_null("scale_depth"), config.is_null("dim_model_base")
    depth = math.sqrt(num_layers) if no_depth else config.number("scale_depth", 1.4)
    base = hidden_size if no_base else config.number("dim_model_base", 256.0)
    layers = latent_layers(
        config,
        sizes,
        [
            gated_mlp(
                f"model.layers.{index}.mlp.",
                hidden_size,
                sizes.decoder.intermediate_size,
                activation=activation,
                has_bias=has_bias,
            )
            for index in range(num_layers)
        ],
        is_interleaved=False,
        residual_multiplier=depth / math.sqrt(num_layers),
    )
    return decoder_spec(
        config,
        "MiniCPM3ForCausalLM",
        sizes.decoder,
        layers,
        final_norm=rms_norm("model.norm", hidden_size, config.number("rms_norm_eps")),
        embedding_scale=config.number("scale_emb", 12.0),
        is_embedding_scale_rounded=True,
        logit_scale=base / hidden_size,
        tie_by_default=True,
    )
