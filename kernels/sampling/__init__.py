"""From logits to tokens: temperature, top_k, top_p, min_p and a Gumbel draw with keyed noise."""

import torch

from quire.kernels.sampling.inputs import SamplingInputs
from quire.kernels.sampling.logits import (
    PenaltyRow,
    TopLogProbabilities,
    apply_penalties_to_logits,
    find_invalid_rows,
    mask_tokens,
    top_log_probabilities,
)

__all__ = [
    "PenaltyRow",
    "SamplingInputs",
    "TopLogProbabilities",
    "apply_penalties_to_logits",
    "find_invalid_rows",
    "mask_tokens",
    "sample_tokens",
    "top_log_probabilities",
]


def sample_tokens(logits_RV: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """Choose a token per row; a row's token depends on its logits and inputs alone.

    With the distance below the best token d = (max - logit) / temperature >= 0, each filter keeps
    the tokens up to some distance, ties at the boundary included, in this order: `top_k` the k-th
    smallest distance; `top_p` the smallest distance up to which the softmax over what top_k left
    reaches top_p; `min_p` -log(min_p). Of the rest, the greatest gumbel - d wins, which draws
    from their softmax (Gumbel-max). The noise is a hash of (seed, choice, position, token id),
    see `noise`. Ties go to the lowest token id, with temperature 0 too.

    Args:
        logits_RV: float32 [R, V], contiguous, not changed. A row with NaN or without a finite
            value (`find_invalid_rows`) gets an unspecified token.
        inputs: of the R rows.

    Returns:
        int32 [R] on the device of the logits, each in [0, V).

    Raises:
        ValueError: a shape or dtype outside the above.
    """
    if logits_RV.ndim != 2 or logits_RV.dtype != torch.float32 or not logits_RV.is_contiguous():
        raise ValueError(
            f"logits must be contiguous float32 [R, V], "
            f"got {logits_RV.dtype} {tuple(logits_RV.shape)}"
        )
    if inputs.temperature.shape != logits_RV.shape[:1]:
        raise ValueError(
            f"inputs must have {logits_RV.shape[0]} rows, got {inputs.temperature.shape[0]}"
        )
    if not inputs.temperature.any():
        return logits_RV.argmax(-1).to(torch.int32)
    if logits_RV.is_cuda:
        from quire.kernels.sampling.kernel import sample_tokens_triton as run
    else:
        from quire.kernels.sampling.cpu import sample_tokens_cpu as run
    return run(logits_RV, inputs)
