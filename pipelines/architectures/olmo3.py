"""OLMo 3 (https://arxiv.org/abs/2512.13961): OLMo 2 where three of four layers have a window."""

from quire.pipelines.architectures.common import DecoderSizes
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.layer_types import (
    GLOBAL,
    LOCAL,
    local_windows,
    read_kinds,
    ropes_by_kind,
)
from quire.pipelines.architectures.olmo2 import olmo2_spec
from quire.pipelines.architectures.spec import ModelSpec

_THETA = 500_000.0


def read_olmo3(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    kinds = read_kinds(config, sizes.num_layers, period=4)
    # Another theta beside `rope_scaling` is of all layers to transformers 4, and of global ones
    # alone to transformers 5; `rope_parameters` says which.
    if config.number("rope_theta", _THETA) != _THETA:
        raise config.wrong("rope_theta", f"{_THETA:g}, or rope_parameters instead")
    ropes = ropes_by_kind(config, sizes, {LOCAL: _THETA, GLOBAL: _THETA})
    return olmo2_spec(
        config,
        "Olmo3ForCausalLM",
        sizes,
        ropes=[ropes[kind] for kind in kinds],
        windows=local_windows(config, kinds),
    )
