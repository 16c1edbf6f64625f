"""Gemma 2 (https://arxiv.org/abs/2408.00118): Gemma with windows, soft caps and post norms."""

from quire.pipelines.architectures.common import DecoderSizes, read_activation
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.gemma import HEAD_DIM, gemma_spec
from quire.pipelines.architectures.layer_types import local_windows, read_kinds
from quire.pipelines.architectures.spec import ModelSpec


def read_gemma2(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config, default_head_dim=HEAD_DIM)
    return gemma_spec(
        config,
        "Gemma2ForCausalLM",
        sizes,
        ropes=(sizes.rope(config),) * sizes.num_layers,
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        windows=local_windows(config, read_kinds(config, sizes.num_layers, period=2)),
        scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        soft_cap=_cap(config, "attn_logit_softcapping", 50.0),
        logit_soft_cap=_cap(config, "final_logit_softcapping", 30.0),
        has_post_norms=True,
    )


def _cap(config: ConfigFile, key: str, default: float) -> float | None:
    # Only a written null means no cap: to transformers a missing key is the default.
    return None if config.is_null(key) else config.number(key, default)
