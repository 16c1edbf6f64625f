"""SwiGLU activation in plain torch: the definition of correct."""

import torch


def swish_glu_reference(gate_up_T2F: torch.Tensor) -> torch.Tensor:
    """As `swish_glu`."""
    gate, up = gate_up_T2F.float().chunk(2, -1)
    # Not F.silu: on a CPU its bits differ between vector body and scalar tail, so an element's
    # place would show in its value (exp, division and multiplication do not).
    return gate.neg().exp_().add_(1.0).reciprocal_().mul_(gate).mul_(up).to(gate_up_T2F.dtype)
