"""What is done to logits, or read from them, besides choosing a token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from quire.kernels.native import library
from quire.kernels.sampling.cpu_native import (
    apply_penalties_native,
    find_invalid_rows_native,
    widen_logits_native,
)


@dataclass(frozen=True, slots=True)
class PenaltyRow:
    """The penalties of one row of logits, and the tokens they count.

    `prompt` and `generated` are int32 token ids; `generated` is what frequency and presence
    count, both together what repetition looks at.
    """

    row: int
    frequency: float
    presence: float
    repetition: float
    prompt: NDArray[np.int32]
    generated: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TopLogProbabilities:
    """Natural-log probabilities: `sampled` float32 [R] of the sampled tokens; `token_ids` int32
    and `values` float32 [R, n], most likely first, lowest id first among equals."""

    sampled: NDArray[np.float32]
    token_ids: NDArray[np.int32]
    values: NDArray[np.float32]


def apply_penalty_rows(logits_RV: torch.Tensor, rows: Sequence[PenaltyRow]) -> None:
    """Apply repetition, then frequency and presence penalties in place, as vLLM does.

    Repetition (CTRL, https://arxiv.org/abs/1909.05858, as HF): positive logits of tokens in the
    prompt or output are divided by it, others multiplied. Then logit -= frequency * count +
    presence for each token generated count >= 1 times.

    Raises:
        ValueError: a token id outside the vocabulary.
    """
    native = library() if logits_RV.is_cpu and logits_RV.is_contiguous() else None
    for penalty in rows:
        logits_V = logits_RV[penalty.row]
        is_done = native is not None and apply_penalties_native(
            native,
            logits_V,
            penalty.prompt,
            penalty.generated,
            frequency=penalty.frequency,
            presence=penalty.presence,
            repetition=penalty.repetition,
        )
        if not is_done:  # or a token is wrong, which is named here
            _apply_penalties(logits_V, penalty)


def _apply_penalties(logits_V: torch.Tensor, penalty: PenaltyRow) -> None:
    if penalty.repetition != 1.0:
        seen = np.unique(np.concatenate((penalty.prompt, penalty.generated)))
        tokens = _token_index(seen, logits_V)
        old = logits_V[tokens]
        scaled = torch.where(old > 0, old / penalty.repetition, old * penalty.repetition)
        logits_V[tokens] = scaled
    if penalty.frequency != 0.0 or penalty.presence != 0.0:
        generated, counts = np.unique(penalty.generated, return_counts=True)
        minus = torch.from_numpy(counts * penalty.frequency + penalty.presence)
        tokens = _token_index(generated, logits_V)
        logits_V[tokens] -= minus.to(logits_V)


def mask_tokens(logits_RV: torch.Tensor, row: int, token_ids: Sequence[int]) -> None:
    """Set the logits of tokens of one row to -inf, in place.

    Raises:
        ValueError: a token id outside the vocabulary.
    """
    tokens = _token_index(np.asarray(token_ids, dtype=np.int64), logits_RV[row])
    logits_RV[row, tokens] = -torch.inf


def top_log_probabilities(
    logits_RV: torch.Tensor, tokens_R: torch.Tensor, n_R: Sequence[int]
) -> TopLogProbabilities:
    """Log-probabilities of the sampled tokens and of the most likely ones, from raw logits.

    A row's values do not depend on the other rows, nor on how many of them are asked for.

    Args:
        logits_RV: float32 [R, V].
        tokens_R: sampled token ids [R].
        n_R: how many of the most likely tokens, per row; the result is as wide as the greatest,
            and a row holds token id -1 and -inf behind its own n (or V, if less).

    Raises:
        ValueError: a sampled token id outside the vocabulary.
    """
    sampled = _token_index(tokens_R.cpu().numpy(), logits_RV[0] if len(logits_RV) else logits_RV)
    # On CUDA the order of a row's sum depends on where the row begins among 16 bytes: -inf behind
    # each row makes all begin alike, and adds nothing.
    aligned_RV = F.pad(logits_RV, (0, -logits_RV.shape[1] % 4), value=-torch.inf)
    log_RV = aligned_RV.log_softmax(-1)
    width = max(n_R, default=0)
    token_ids = np.full((len(log_RV), width), -1, dtype=np.int32)
    values = np.full((len(log_RV), width), -np.inf, dtype=np.float32)
    for row, wanted in enumerate(n_R):
        count = min(wanted, logits_RV.shape[1])
        if count > 0:
            # The order that topk gives equal values depends on its k: sort the candidates.
            least = logits_RV[row].topk(count).values[-1]
            candidates = (logits_RV[row] >= least).nonzero()[:, 0]
            order = logits_RV[row, candidates].argsort(descending=True, stable=True)
            best = candidates[order[:count]]
            token_ids[row, :count] = best.cpu().numpy()
            values[row, :count] = log_RV[row, best].cpu().numpy()
    chosen = log_RV.gather(1, sampled[:, None])[:, 0]
    return TopLogProbabilities(chosen.cpu().numpy(), token_ids, values)


def widen_logits(logits_RV: torch.Tensor) -> torch.Tensor:
    """float32 [R, V] of the same values.

    On a CPU not by torch: its team of threads sleeps between steps, and to wake it takes longer
    than the work, with a busy neighbour some milliseconds.
    """
    native = library() if logits_RV.is_cpu else None
    if native is None or logits_RV.dtype != torch.bfloat16 or not logits_RV.is_contiguous():
        return logits_RV.float()
    return widen_logits_native(native, logits_RV)


def find_invalid_rows(logits_RV: torch.Tensor) -> torch.Tensor:
    """bool [R] on the device of the logits: rows with NaN, with +inf, or with -inf alone."""
    native = library() if logits_RV.is_cpu else None
    if native is not None and logits_RV.dtype == torch.float32 and logits_RV.is_contiguous():
        return find_invalid_rows_native(native, logits_RV)
    # The maximum carries NaN and +inf, and is -inf where nothing is finite.
    return logits_RV.amax(-1).isfinite().logical_not()


def _token_index(tokens: NDArray[np.integer], logits: torch.Tensor) -> torch.Tensor:
    """int64 index on the device of the logits, checked against their last dimension."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= logits.shape[-1]):
        wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
        raise ValueError(f"token id must be in [0, {logits.shape[-1]}), got {wrong}")
    return torch.from_numpy(tokens.astype(np.int64)).to(logits.device)
