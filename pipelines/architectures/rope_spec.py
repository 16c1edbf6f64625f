"""Which rotary position embedding a model uses, read from its config.json. No torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from quire.pipelines.architectures.config_file import ConfigFile

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """The parameters of a rotary embedding; those another kind uses keep their defaults.

    `original_max_position` is the context length before scaling. `attention_factor` multiplies
    the table's cosines and sines; None: computed from `factor` as the method's paper says.
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


def read_rope(config: ConfigFile, *, head_dim: int, max_position_embeddings: int) -> RopeSpec:
    """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before it).

    Raises:
        ModelError: a parameter of the kind is missing or wrong, or the kind is unknown.
    """
    rope = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    for source in (rope, config):
        if source.number("partial_rotary_factor", 1.0) != 1.0:
            raise source.wrong("partial_rotary_factor", "1")
    kind_key = "type" if rope.has("type") and not rope.has("rope_type") else "rope_type"
    kind = rope.string(kind_key, "default")
    original = config.integer(
        "original_max_position_embeddings",
        rope.integer("original_max_position_embeddings", max_position_embeddings),
    )
    match kind:
        case "default":
            return RopeSpec(theta=theta)
        case "linear" | "dynamic":
            return RopeSpec(
                kind=kind,
                theta=theta,
                factor=rope.number("factor"),
                original_max_position=max_position_embeddings,
            )
        case "llama3":
            return _llama3(rope, theta, original)
        case "yarn":
            return _yarn(rope, theta, original, max_position_embeddings)
        case "longrope":
            return _longrope(rope, theta, original, max_position_embeddings, head_dim)
    raise rope.wrong(kind_key, f"one of {', '.join(get_args(RopeKind))}")


def _llama3(rope: ConfigFile, theta: float, original: int) -> RopeSpec:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", f"a number greater than low_freq_factor {low:g}")
    return RopeSpec(
        kind="llama3",
        theta=theta,
        factor=rope.number("factor"),
        original_max_position=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(rope: ConfigFile, theta: float, original: int, max_position: int) -> RopeSpec:
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=rope.number("factor", max_position / original),
        original_max_position=original,
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.boolean("truncate", True),
    )


def _longrope(
    rope: ConfigFile, theta: float, original: int, max_position: int, head_dim: int
) -> RopeSpec:
    factors = {}
    for key in ("short_factor", "long_factor"):
        factors[key] = rope.numbers(key)
        if len(factors[key]) != head_dim // 2:
            raise rope.wrong(key, f"{head_dim // 2} numbers")
    return RopeSpec(
        kind="longrope",
        theta=theta,
        factor=rope.number("factor", max_position / original),
        original_max_position=original,
        attention_factor=rope.optional_number("attention_factor"),
        short_factor=factors["short_factor"],
        long_factor=factors["long_factor"],
    )
