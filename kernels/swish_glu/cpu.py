"""SwiGLU activation on a CPU: the compiled kernel where it was installed, else torch's."""

import torch

from quire.kernels.native import library
from quire.kernels.native.row_ops import activation_native, is_native
from quire.kernels.swish_glu.reference import swish_glu_reference


def swish_glu_cpu(gate_up_T2F: torch.Tensor) -> torch.Tensor:
    """As `swish_glu`."""
    native = library()
    if native is not None and is_native(gate_up_T2F):
        return activation_native(native, gate_up_T2F, "silu", is_gated=True)
    return swish_glu_reference(gate_up_T2F)
