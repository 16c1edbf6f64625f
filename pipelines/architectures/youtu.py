"""Youtu-LLM (https://arxiv.org/abs/2512.24618): DeepSeek-V3's attention in a dense decoder."""

from quire.pipelines.architectures.common import (
    decoder_spec,
    gated_mlp,
    read_activation,
    rms_norm,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.latent_decoder import LatentSizes, latent_layers
from quire.pipelines.architectures.spec import ModelSpec


def read_youtu(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = LatentSizes.read(config)
    hidden_size = sizes.decoder.hidden_size
    activation = read_activation(config)
    layers = latent_layers(
        config,
        sizes,
        [
            gated_mlp(
                f"model.layers.{index}.mlp.",
                hidden_size,
                sizes.decoder.intermediate_size,
                activation=activation,
            )
            for index in range(sizes.decoder.num_layers)
        ],
        is_interleaved=config.boolean("rope_interleave", True),
    )
    return decoder_spec(
        config,
        "YoutuForCausalLM",
        sizes.decoder,
        layers,
        final_norm=rms_norm("model.norm", hidden_size, config.number("rms_norm_eps")),
        tie_by_default=True,
    )
