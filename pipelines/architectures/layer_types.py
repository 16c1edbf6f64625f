"""Decoders with layers of two kinds: local ones attend to a window, global ones to everything.

No torch. Gemma 2 and 3, Olmo 3, Exaone 4 and Ministral.
"""

from collections.abc import Mapping, Sequence

from quire.pipelines.architectures.common import DecoderSizes, read_layer_types
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.rope_spec import RopeSpec, read_rope

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read_kinds(config: ConfigFile, num_layers: int, period: int) -> tuple[str, ...]:
    """`layer_types`, or where the key is missing: every `period`-th layer is global.

    Raises:
        ModelError: another number of layers, or another kind.
    """
    if config.has("layer_types"):
        return read_layer_types(config, num_layers, {LOCAL, GLOBAL})
    return tuple(LOCAL if (layer + 1) % period else GLOBAL for layer in range(num_layers))


def local_windows(config: ConfigFile, kinds: Sequence[str]) -> tuple[int | None, ...]:
    """`sliding_window` for each local layer, None for each global one.

    Raises:
        ModelError: there are local layers, and no window.
    """
    window = config.integer("sliding_window") if LOCAL in kinds else None
    return tuple(window if kind == LOCAL else None for kind in kinds)


def ropes_by_kind(
    config: ConfigFile, sizes: DecoderSizes, thetas: Mapping[str, float]
) -> Mapping[str, RopeSpec]:
    """A rotary embedding for each kind; `thetas` has those to take where it has none of its own.

    Before transformers 5 `rope_scaling` was that of the global layers, and local ones had none.

    Raises:
        ModelError: a parameter is missing or wrong, or `rope_parameters` is not by kind.
    """
    sections = {GLOBAL: config.section("rope_scaling"), LOCAL: ConfigFile(config.name, {})}
    if config.has("rope_parameters"):
        parameters = config.section("rope_parameters")
        if not set(parameters) <= {LOCAL, GLOBAL}:
            raise config.wrong("rope_parameters", f"an object each for {GLOBAL} and {LOCAL}")
        if config.has("rope_scaling"):
            raise config.wrong("rope_scaling", "nothing beside rope_parameters")
        sections = {kind: parameters.section(kind) for kind in (LOCAL, GLOBAL)}
    return {
        kind: read_rope(
            config,
            head_dim=sizes.head_dim,
            max_position_embeddings=sizes.max_position_embeddings,
            section=section.with_defaults({"rope_theta": thetas[kind]}),
        )
        for kind, section in sections.items()
    }
