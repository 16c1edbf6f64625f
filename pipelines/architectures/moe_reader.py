"""What the files of mixtures of experts share: reading the usual keys. No torch."""

from collections.abc import Sequence

from quire.pipelines.architectures.common import read_activation
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.moe_parts import RouterSpec

MAX_EXPERTS = 512
"""The most that the router's kernel takes."""


def read_expert_counts(
    config: ConfigFile, keys: Sequence[str] = ("num_local_experts", "num_experts")
) -> tuple[int, int]:
    """The number of experts, under the first of `keys` there is, and how many a token meets.

    Raises:
        ModelError: a count is missing or out of range, or experts are not gated with silu.
    """
    key = next((key for key in keys if config.has(key)), keys[0])
    num_experts = config.integer(key)
    if num_experts > MAX_EXPERTS:
        raise config.wrong(key, f"at most {MAX_EXPERTS} experts")
    top_k = config.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise config.wrong("num_experts_per_tok", f"at most the {num_experts} experts")
    if read_activation(config) != "silu":
        raise config.wrong("hidden_act", "silu, which is what experts are gated with")
    return num_experts, top_k


def router_spec(
    name: str, hidden_size: int, num_experts: int, *, has_bias: bool = False
) -> RouterSpec:
    """A router in the dtype of the model."""
    return RouterSpec(names=(name,), in_dim=hidden_size, out_dims=(num_experts,), has_bias=has_bias)
