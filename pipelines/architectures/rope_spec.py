"""Which rotary position embedding a model uses, read from its config.json. No torch."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from quire.pipelines.architectures.config_file import ConfigFile

RopeKind = Literal["none", "default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """The parameters of a rotary embedding; those another kind uses keep their defaults.

    `head_dim` is the width of a head, of which the first `rotary_dim` numbers turn; `none` turns
    nothing. `is_interleaved` pairs neighbours (GPT-J), not halves (Llama).
    `original_max_position` is the context length before scaling, `max_position` that of config.json. `attention_factor` multiplies
    the table's cosines and sines; None: computed from `factor` as the method's paper says.
    """

    kind: RopeKind = "default"
    head_dim: int
    rotary_dim: int
    is_interleaved: bool = False
    max_position: int = 0
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

    @property
    def longest_context(self) -> int:
        """The greatest length the table is made for.

        Linear and dynamic scaling state the length before it in `max_position`, and YaRN may.
        """
        match self.kind:
            case "linear" | "dynamic":
                return int(self.max_position * self.factor)
            case "yarn":
                return max(self.max_position, int(self.original_max_position * self.factor))
        return self.max_position


def no_rope(head_dim: int) -> RopeSpec:
    """Of layers that see no position (SmolLM3, Llama 4)."""
    return RopeSpec(kind="none", head_dim=head_dim, rotary_dim=head_dim)


def read_rope(
    config: ConfigFile,
    *,
    head_dim: int,
    max_position_embeddings: int,
    section: ConfigFile | None = None,
    is_interleaved: bool = False,
    default_share: float | None = None,
    default_theta: float = 10000.0,
) -> RopeSpec:
    """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before it).

    `section` is read instead where a model has several (Gemma 3). `default_share` and
    `default_theta` are what a missing `partial_rotary_factor` and `rope_theta` mean; without
    `default_share` the architecture turns whole heads only.

    Raises:
        ModelError: a parameter of the kind is missing or wrong, or the kind is unknown.
    """
    rope = _section(config) if section is None else section
    share = config.number("partial_rotary_factor", default_share or 1.0)
    share = rope.number("partial_rotary_factor", share)
    if default_share is None and share != 1.0:
        owner = rope if rope.has("partial_rotary_factor") else config
        raise owner.wrong("partial_rotary_factor", "1: this architecture turns whole heads")
    rotary_dim = int(head_dim * share)
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        raise config.wrong("partial_rotary_factor", f"an even part of a head of {head_dim}")
    base = RopeSpec(
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        is_interleaved=is_interleaved,
        max_position=max_position_embeddings,
        theta=rope.number("rope_theta", config.number("rope_theta", default_theta)),
        original_max_position=config.integer(
            "original_max_position_embeddings",
            rope.integer("original_max_position_embeddings", max_position_embeddings),
        ),
    )
    kind_key = "type" if rope.has("type") and not rope.has("rope_type") else "rope_type"
    match rope.string(kind_key, "default"):
        case "default":
            return base
        case "linear" | "dynamic" as kind:
            return replace(
                base,
                kind=kind,
                factor=rope.number("factor"),
                original_max_position=max_position_embeddings,
            )
        case "llama3":
            return _llama3(rope, base)
        case "yarn":
            return _yarn(rope, base)
        case "longrope" | "su":
            return _longrope(rope, base)
    known = [name for name in get_args(RopeKind) if name != "none"]
    raise rope.wrong(kind_key, f"one of {', '.join(known)}")


def _section(config: ConfigFile) -> ConfigFile:
    """The one object that describes all layers."""
    keys = ("rope_parameters", "rope_scaling")
    named = [key for key in keys if config.has(key) and not config.is_empty(key)]
    # transformers 5 takes `rope_scaling` alone then, and forgets the theta beside the other.
    if len(named) > 1:
        raise config.wrong("rope_scaling", "nothing beside rope_parameters")
    rope = config.section(named[0]) if named else ConfigFile(config.name, {})
    for kind in ("full_attention", "sliding_attention"):
        if rope.has(kind):
            raise rope.wrong(kind, "nothing: all layers of this architecture turn alike")
    return rope


def _llama3(rope: ConfigFile, base: RopeSpec) -> RopeSpec:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", f"a number greater than low_freq_factor {low:g}")
    return replace(
        base,
        kind="llama3",
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(rope: ConfigFile, base: RopeSpec) -> RopeSpec:
    return replace(
        base,
        kind="yarn",
        factor=rope.number("factor", base.max_position / base.original_max_position),
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.boolean("truncate", True),
    )


def _longrope(rope: ConfigFile, base: RopeSpec) -> RopeSpec:
    factors = {}
    for key in ("short_factor", "long_factor"):
        factors[key] = rope.numbers(key)
        if len(factors[key]) != base.rotary_dim // 2:
            raise rope.wrong(key, f"{base.rotary_dim // 2} numbers")
    return replace(
        base,
        kind="longrope",
        factor=rope.number("factor", base.max_position / base.original_max_position),
        attention_factor=rope.optional_number("attention_factor"),
        short_factor=factors["short_factor"],
        long_factor=factors["long_factor"],
    )
