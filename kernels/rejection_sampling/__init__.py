"""Speculative decoding: which drafted tokens the target model accepts, and what comes instead.

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192: whatever the draft, the tokens are
distributed as the target's own. Noise is counter-based as in `quire.kernels.sampling`, and nothing
waits for the device.
"""

from typing import Any

import torch

from quire.kernels.checks import check_range, check_tensor
from quire.kernels.sampling import MAX_VOCABULARY
from quire.kernels.torch_op import torch_op


def _fake(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    **options: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = draft_tokens.shape[0]
    return draft_tokens.new_empty(rows), draft_tokens.new_empty(rows)


@torch_op(fake=_fake)
def rejection_sampler(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    *,
    temperature: torch.Tensor | float = 1.0,
    seed: torch.Tensor | int = 0,
    choice: torch.Tensor | int = 0,
    position: torch.Tensor | int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many drafted tokens of each row are accepted, and the token after them.

    With p and q the softmax of target and draft logits over temperature, a drafted token t is
    accepted with probability min(1, p(t) / q(t)). After the first rejection the next token is
    drawn from max(p - q, 0), normalized; if all are accepted, from the target's last logits, as
    `sample_tokens` draws without filters. With temperature 0 a token is accepted if it is the
    target's most likely (lowest id among equals), which is also the next token.

    top_k, top_p and other filters are the caller's: -inf in both logits, as the draft was drawn.

    Args:
        draft_tokens: int32 [B, S], S at least 1; a token outside the vocabulary is rejected.
        draft_logits: float32 [B, S, V], what each was drawn from, or None for drafts that were
            not drawn (n-grams, a greedy draft model): q is then 1 for the drafted token.
        target_logits: float32 [B, S + 1, V], step s after the first s drafted tokens.
        temperature: 0 or above, a number or float32 [B] on the device of the logits.
        seed, choice, position: key of the noise, as of `topk_fused_sampling`; `position` is the
            absolute one of the first drafted token.

    Returns:
        int32 [B], the index of the first rejected token, S if none is; and the next token
        int32 [B].

    Raises:
        ValueError: a shape, dtype, device or number outside the above.
    """
    _check(draft_tokens, draft_logits, target_logits)
    options = {"temperature": temperature, "seed": seed, "choice": choice, "position": position}
    run = _found(target_logits, "rejection_sampler")
    first, following = run(draft_tokens, draft_logits, target_logits, **options)
    return first, following


def _fake_residuals(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    **options: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = draft_tokens.shape[0]
    return draft_tokens.new_empty(rows), draft_tokens.clone(), draft_tokens.new_empty(rows)


@torch_op(fake=_fake_residuals)
def rejection_sampler_with_residuals(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    *,
    temperature: torch.Tensor | float = 1.0,
    seed: torch.Tensor | int = 0,
    choice: torch.Tensor | int = 0,
    position: torch.Tensor | int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`rejection_sampler` with the token that would follow a rejection at every step.

    Where p nowhere exceeds q (no token can be rejected), that token is the most likely one.

    Args:
        All as of `rejection_sampler`.

    Returns:
        int32 [B], the index of the first rejected token, S if none is; the recovered tokens
        int32 [B, S]; and the bonus token int32 [B] that follows when all are accepted.

    Raises:
        ValueError: a shape, dtype, device or number outside those of `rejection_sampler`.
    """
    _check(draft_tokens, draft_logits, target_logits)
    options = {"temperature": temperature, "seed": seed, "choice": choice, "position": position}
    run = _found(target_logits, "rejection_sampler_with_residuals")
    first, recovered, bonus = run(draft_tokens, draft_logits, target_logits, **options)
    return first, recovered, bonus


def _found(target_logits: torch.Tensor, name: str) -> Any:
    if target_logits.is_cuda:
        from quire.kernels.rejection_sampling import kernel

        return getattr(kernel, f"{name}_triton")
    from quire.kernels.rejection_sampling import reference

    return getattr(reference, f"{name}_reference")


def _check(
    draft_tokens: torch.Tensor, draft_logits: torch.Tensor | None, target_logits: torch.Tensor
) -> None:
    check_tensor("draft_tokens", draft_tokens, ("B", "S"), torch.int32)
    rows, steps = draft_tokens.shape
    check_range("the steps of draft_tokens", steps, 1, 1023)
    device, float32 = draft_tokens.device, torch.float32
    check_tensor("target_logits", target_logits, (rows, steps + 1, "V"), float32, device=device)
    vocabulary = target_logits.shape[2]
    check_range("the vocabulary of target_logits", vocabulary, 1, MAX_VOCABULARY)
    if draft_logits is not None:
        shape = (rows, steps, vocabulary)
        check_tensor("draft_logits", draft_logits, shape, float32, device=device)
