"""From logits to tokens: temperature, top_k, top_p, min_p and a Gumbel draw with keyed noise."""

import torch

from quire.kernels.checks import check_range, check_tensor
from quire.kernels.sampling.inputs import SamplingInputs
from quire.kernels.sampling.logits import (
    PenaltyRow,
    TopLogProbabilities,
    apply_penalty_rows,
    find_invalid_rows,
    mask_tokens,
    top_log_probabilities,
    widen_logits,
)
from quire.kernels.torch_op import torch_op

__all__ = [
    "PenaltyRow",
    "SamplingInputs",
    "TopLogProbabilities",
    "apply_penalty_rows",
    "find_invalid_rows",
    "mask_tokens",
    "sample_tokens",
    "top_log_probabilities",
    "topk_fused_sampling",
    "widen_logits",
]

MAX_VOCABULARY = 2**20
"""For more the integer masses of the kernels could overflow."""


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
    _check_logits("logits_RV", logits_RV)
    if inputs.temperature.shape != logits_RV.shape[:1]:
        raise ValueError(
            f"inputs must have {logits_RV.shape[0]} rows, got {inputs.temperature.shape[0]}"
        )
    if not logits_RV.is_cuda:
        from quire.kernels.sampling.cpu import sample_tokens_cpu

        return sample_tokens_cpu(logits_RV, inputs)
    if not inputs.temperature.any():
        return logits_RV.argmax(-1).to(torch.int32)
    from quire.kernels.sampling.kernel import sample_tokens_triton

    return sample_tokens_triton(logits_RV, inputs)


def _fake(
    logits: torch.Tensor, top_k: torch.Tensor | int, **options: torch.Tensor | float | None
) -> torch.Tensor:
    return logits.new_empty(logits.shape[0], 1, dtype=torch.int32)


@torch_op(fake=_fake)
def topk_fused_sampling(
    logits: torch.Tensor,
    top_k: torch.Tensor | int,
    *,
    temperature: torch.Tensor | float = 1.0,
    max_k: int | None = None,
    top_p: torch.Tensor | float = 1.0,
    min_p: torch.Tensor | float = 0.0,
    seed: torch.Tensor | int = 0,
    choice: torch.Tensor | int = 0,
    position: torch.Tensor | int = 0,
) -> torch.Tensor:
    """Choose a token per row as `sample_tokens` does, from options that may be on the device.

    Each option is one number for all rows or a tensor [B] on the device of the logits: `top_k`,
    `choice`, `position` int32, `temperature`, `top_p`, `min_p` float32, `seed` int64. Nothing
    waits for the device, so a CUDA graph may hold the call and read new values from the tensors;
    values in a tensor are not checked. Rows of one seed and choice that should differ need
    different positions.

    A CPU and a GPU may disagree where rounding decides: of exp and log, and of masses, which are
    float64 on a CPU and whole numbers of 2^-42 of the best token's on a GPU. Either way a row's
    token does not depend on the other rows.

    Args:
        logits: float32 [B, V], contiguous, not changed; V at most 2^20.
        top_k: tokens to keep, below 1 for all.
        temperature: 0 takes the most likely token.
        max_k: bounds every top_k that is on.
        top_p: probability mass to keep, 1 for all.
        min_p: least probability to keep, as a share of the greatest; 0 for all.
        seed: with `choice` and `position`, the key of the noise.

    Returns:
        int32 [B, 1] on the device of the logits, each in [0, V).

    Raises:
        ValueError: a shape, dtype, device or number outside the above.
    """
    _check_logits("logits", logits)
    if logits.is_cuda:
        from quire.kernels.sampling.kernel import topk_fused_sampling_triton as run
    else:
        from quire.kernels.sampling.cpu import topk_fused_sampling_cpu as run
    return run(
        logits,
        top_k,
        temperature=temperature,
        max_k=max_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        choice=choice,
        position=position,
    )


def _check_logits(name: str, logits_RV: torch.Tensor) -> None:
    check_tensor(name, logits_RV, ("R", "V"), torch.float32)
    check_range(f"the vocabulary of {name}", logits_RV.shape[1], 1, MAX_VOCABULARY)
