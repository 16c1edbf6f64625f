"""Random mixtures of experts."""

from typing import Any

import torch
import transformers
from parity.random_models import make_random_model


def make_random_mixture(family: str, **fields: Any) -> transformers.PreTrainedModel:
    """As `make_random_model`, and `spread_mixture` of it."""
    return spread_mixture(make_random_model(family, attn_implementation="eager", **fields))


def make_decided_mixture(family: str, **fields: Any) -> transformers.PreTrainedModel:
    """As `make_random_model`, and `decide_mixture` of it."""
    return decide_mixture(make_random_model(family, attn_implementation="eager", **fields))


def spread_mixture(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with random routers, sinks and biases of experts, far from zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate.weight", "router.weight")):
                parameter.normal_(std=0.3)
            elif name.endswith(("sinks", "_bias")):
                parameter.normal_(std=0.5)
    return model


def decide_mixture(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """As `spread_mixture`, but no token's experts depend on rounding, for cases in bfloat16.

    Of some hundred choices among random logits a few are so close that bfloat16 turns them, at
    other tokens here than in transformers, and one wrong expert is a greater error than all
    rounding. So the first numbers of the residual stream, one per expert, are the embedding's
    alone, as no layer writes there, and routers read only those. They are 1, 2, 3, ... in an order
    that most tokens share, so experts are used unevenly.
    """
    config = model.config.get_text_config()
    experts = int(getattr(config, "num_local_experts", 0) or config.num_experts)
    with torch.no_grad():
        for name, parameter in spread_mixture(model).named_parameters():
            if "embed_tokens" in name:
                parameter[:, :experts] = _preferences(len(parameter), experts)
            elif name.endswith("layernorm.weight"):
                parameter[:experts] = 1.0
            elif name.endswith((".gate.weight", "router.weight")):
                parameter.zero_()
                parameter[:, :experts] = torch.eye(experts)
            elif name.endswith("router.bias"):
                parameter.zero_()
            elif name.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias")):
                parameter[:experts] = 0.0
            elif name.endswith("experts.down_proj"):
                _of_outputs(parameter, config.hidden_size)[:, :experts] = 0.0
            elif name.endswith("experts.down_proj_bias"):
                parameter[:, :experts] = 0.0
    return model


def _preferences(tokens: int, experts: int) -> torch.Tensor:
    """[V, E]: 1, 2, 3, ... in an order that one of three tokens has turned."""
    order = torch.arange(1.0, experts + 1)
    rows = [order.roll(token) if token % 3 == 0 else order for token in range(tokens)]
    return torch.stack(rows)


def _of_outputs(down: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """[E, C, F] of a `down_proj` that may be stored as [E, F, C]."""
    return down if down.shape[1] == hidden_size else down.transpose(1, 2)
