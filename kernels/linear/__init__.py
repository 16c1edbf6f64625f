"""Dense layer with prepared weights, and rows whose bits do not depend on the other rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.linear.cpu import in_row_counts, prepacked
from quire.kernels.linear.cpu_native import NativeLinear
from quire.kernels.linear.dispatch import capability_of, library_for
from quire.kernels.linear.reference import linear_reference
from quire.kernels.linear.tile_plan import TilePlans
from quire.kernels.native import library
from quire.kernels.torch_op import torch_op

Apply = Callable[[torch.Tensor], torch.Tensor]


def _fake(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    return x_TK.new_empty(x_TK.shape[0], weight_NK.shape[0])


@torch_op(fake=_fake)
def linear(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b with weights as they are.

    On CUDA a row's bits do not depend on the other rows; on a CPU only `prepare_linear` keeps
    that promise.

    Args:
        x_TK: [T, K], bfloat16, float16 or float32, contiguous.
        weight_NK: [N, K] in the dtype of x, contiguous.
        bias_N: [N] in the dtype of x, or None.

    Returns:
        [T, N] in the dtype of x.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    check_tensor("x_TK", x_TK, ("T", "K"), FLOATS)
    device = x_TK.device
    check_tensor("weight_NK", weight_NK, ("N", x_TK.shape[1]), x_TK.dtype, device=device)
    if bias_N is not None:
        check_tensor("bias_N", bias_N, (weight_NK.shape[0],), x_TK.dtype, device=device)
    if x_TK.is_cuda:
        return _on_cuda(x_TK, weight_NK, bias_N, exact=True)
    return linear_reference(x_TK, weight_NK, bias_N)


def _on_cuda(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, *, exact: bool
) -> torch.Tensor:
    """As `linear`, by the library that the dispatch table names."""
    capability = capability_of(x_TK.device)
    if library_for(exact, capability, x_TK.dtype, x_TK.shape[0]) == "vendor":
        return linear_reference(x_TK, weight_NK, bias_N)
    from quire.kernels.linear.kernel import linear_triton

    return linear_triton(x_TK, weight_NK, bias_N)


def _applied_on_cuda(weight_NK: torch.Tensor, bias_N: torch.Tensor | None, *, exact: bool) -> Apply:
    return lambda x_TK: _on_cuda(x_TK.contiguous(), weight_NK, bias_N, exact=exact)


@dataclass(frozen=True, slots=True)
class PreparedLinear:
    """y = x W^T + b with the weights laid out for their device.

    `row_counts` are the numbers of rows that a GEMM is run with in exact mode on a CPU without the
    compiled library, others are cut and padded to them; empty where the kernel itself does not care.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype
    row_counts: tuple[int, ...]
    apply: Apply

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, K] to [T, N] in the dtype of the weights.

        Raises:
            ValueError: another number of columns or another dtype.
        """
        if x_TK.ndim != 2 or x_TK.shape[1] != self.in_features or x_TK.dtype != self.dtype:
            raise ValueError(
                f"x must be [T, {self.in_features}] of {self.dtype}, "
                f"got {tuple(x_TK.shape)} of {x_TK.dtype}"
            )
        return self.apply(x_TK)


def prepare_linear(
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    *,
    exact: bool = True,
    plans: TilePlans | None = None,
    more_rows: Sequence[torch.Tensor] = (),
) -> PreparedLinear:
    """Lay out the weights for their device; the original may be freed afterwards (CPU).

    Exact: the bits of a row are the same for every number of rows and every place among them.
    On CUDA and on a CPU with the compiled library that is a kernel of one order over K; else GEMMs
    of probed row counts (see `tile_plan`), for the number of threads at the time of this call.

    Args:
        weight_NK: [N, K], bfloat16 or float32, on CUDA also float16.
        bias_N: [N] in the dtype of the weight, or None.
        exact: False lets the fastest library choose its kernel by the number of rows (CUDA, or a
            CPU without the compiled library, whose exact kernel is the fastest).
        plans: probe results; layers prepared with the same object probe each shape once.
        more_rows: [n, K] each, like `weight_NK`: the rows of W that follow, which N counts too. The
            compiled library takes them from where they are, without a copy of them all.

    Raises:
        ValueError: a shape, dtype or device outside the above.
    """
    allowed = [torch.bfloat16, torch.float32] + [torch.float16] * weight_NK.is_cuda
    if weight_NK.ndim != 2 or 0 in weight_NK.shape or weight_NK.dtype not in allowed:
        raise ValueError(
            f"weight must be [N, K] of one of {allowed}, "
            f"got {tuple(weight_NK.shape)} of {weight_NK.dtype}"
        )
    native = None if weight_NK.is_cuda else library()
    if native is None and more_rows:
        weight_NK, more_rows = torch.cat([weight_NK, *more_rows]), ()
    out_features = len(weight_NK) + sum(len(rows) for rows in more_rows)
    if bias_N is not None and (bias_N.shape != (out_features,) or bias_N.dtype != weight_NK.dtype):
        raise ValueError(
            f"bias must be [{out_features}] of {weight_NK.dtype}, "
            f"got {tuple(bias_N.shape)} of {bias_N.dtype}"
        )
    if bias_N is not None and bias_N.device != weight_NK.device:
        raise ValueError(f"bias must be on {weight_NK.device}, got {bias_N.device}")
    row_counts: tuple[int, ...] = ()
    if weight_NK.is_cuda:
        bias_N = None if bias_N is None else bias_N.contiguous()
        apply: Apply = _applied_on_cuda(weight_NK.contiguous(), bias_N, exact=exact)
    elif native is not None:
        apply = NativeLinear(weight_NK, bias_N, native=native, more_rows=more_rows)
    else:
        apply = prepacked(weight_NK, bias_N)
        if exact:
            row_counts = (plans or TilePlans()).row_counts(weight_NK, bias_N is not None)
            apply = in_row_counts(apply, weight_NK.shape[0], row_counts)
    return PreparedLinear(weight_NK.shape[1], out_features, weight_NK.dtype, row_counts, apply)
