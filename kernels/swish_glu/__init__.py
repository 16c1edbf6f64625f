"""The gated activation of a SwiGLU feed-forward block."""

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.swish_glu.cpu import swish_glu_cpu
from quire.kernels.torch_op import torch_op


def _fake(gate_up_T2F: torch.Tensor) -> torch.Tensor:
    return gate_up_T2F.new_empty(gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2)


@torch_op(fake=_fake)
def swish_glu(gate_up_T2F: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, with silu(g) = g / (1 + exp(-g)); fp32 inside, rounded once.

    SwiGLU of Shazeer 2020, https://arxiv.org/abs/2002.05202. An element's bits depend on its
    gate and up values alone. MAX's swish_glu(a, b0, b1) = swish(a @ b0.T) * (a @ b1.T) is this of
    `linear(a, torch.cat((b0, b1)))`: one product with the joined weights, then the activation.

    Args:
        gate_up_T2F: [T, 2F], gate in the first F columns, up in the last F; bfloat16, float16
            or float32, contiguous.

    Returns:
        out_TF [T, F] in the dtype of `gate_up_T2F`.

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    check_tensor("gate_up_T2F", gate_up_T2F, ("T", "2F"), FLOATS)
    if gate_up_T2F.shape[1] % 2:
        raise ValueError(f"gate_up_T2F must be [T, 2F], got {list(gate_up_T2F.shape)}")
    if not gate_up_T2F.is_cuda:
        return swish_glu_cpu(gate_up_T2F)
    from quire.kernels.swish_glu.kernel import swish_glu_triton

    return swish_glu_triton(gate_up_T2F)
