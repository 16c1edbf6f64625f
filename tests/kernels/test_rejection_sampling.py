"""Rejection sampling: the target's distribution whatever the draft, and greedy exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from quire.kernels.rejection_sampling import rejection_sampler, rejection_sampler_with_residuals
from quire.kernels.rejection_sampling.kernel import (
    rejection_sampler_triton,
    rejection_sampler_with_residuals_triton,
)
from quire.kernels.sampling import topk_fused_sampling

Sampler = Callable[..., tuple[torch.Tensor, ...]]
PATHS = [
    pytest.param(rejection_sampler, rejection_sampler_with_residuals, id="cpu"),
    pytest.param(rejection_sampler_triton, rejection_sampler_with_residuals_triton, id="triton"),
]
DRAWS, VOCABULARY = 20_000, 9


def drafted(is_drawn: bool, temperature: float) -> dict[str, Any]:
    """Two drafted tokens a row, drawn from a draft model unlike the target; many rows alike."""
    generator = torch.Generator().manual_seed(1)
    target = 1.5 * torch.randn(1, 3, VOCABULARY, generator=generator)
    draft = 1.5 * torch.randn(1, 2, VOCABULARY, generator=generator)
    draft[0, 0, 4] = target[0, 1, 2] = -torch.inf
    rates = (draft[0] / temperature).softmax(-1)
    tokens = rates.multinomial(DRAWS, replacement=True, generator=generator).T.contiguous()
    if not is_drawn:
        tokens[:] = target[0, :2].topk(2).indices[:, 1]
    return {
        "draft_tokens": tokens.int(),
        "draft_logits": draft.expand(DRAWS, -1, -1).contiguous() if is_drawn else None,
        "target_logits": target.expand(DRAWS, -1, -1).contiguous(),
        "temperature": temperature,
        "position": torch.arange(0, 3 * DRAWS, 3, dtype=torch.int32),
    }


def assert_drawn_from(tokens: torch.Tensor, logits: torch.Tensor, temperature: float) -> None:
    probability = (logits.double() / temperature).softmax(-1).numpy()
    counts = np.bincount(tokens.numpy(), minlength=VOCABULARY)
    kept = probability > 0
    assert counts[~kept].sum() == 0
    expected = probability[kept] * counts.sum()
    statistic = np.sum((counts[kept] - expected) ** 2 / expected)
    freedom = torch.tensor((kept.sum() - 1) / 2)
    chance = torch.special.gammaincc(freedom, torch.tensor(statistic / 2))
    assert chance > 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("is_drawn", [True, False])
def test_tokens_are_distributed_as_the_targets(is_drawn: bool, temperature: float) -> None:
    inputs = drafted(is_drawn, temperature)
    target = inputs["target_logits"][0]

    first, following = rejection_sampler(**inputs)

    tokens = inputs["draft_tokens"]
    assert set(first.tolist()) == {0, 1, 2}
    assert_drawn_from(torch.where(first > 0, tokens[:, 0], following), target[0], temperature)
    second = torch.where(first > 1, tokens[:, 1], following)[first > 0]
    assert_drawn_from(second, target[1], temperature)
    assert_drawn_from(following[first == 2], target[2], temperature)
    # As often as the distributions overlap.
    p = (target[:2].double() / temperature).softmax(-1)
    if is_drawn:
        q = (inputs["draft_logits"][0].double() / temperature).softmax(-1)
    else:
        q = torch.nn.functional.one_hot(tokens[0].long(), VOCABULARY).double()
    rate = torch.minimum(p, q).sum(-1)
    deviation = (rate[0] * (1 - rate[0]) / DRAWS) ** 0.5
    assert abs((first > 0).double().mean() - rate[0]) < 4 * deviation


def test_steps_and_the_noise_of_the_draft_are_independent() -> None:
    """What follows does not depend on the noise that `sample_tokens` has at that position."""
    inputs = drafted(True, 1.0)
    draft = inputs["draft_logits"]
    options = {"position": inputs["position"]}
    tokens = torch.stack(
        [
            topk_fused_sampling(
                draft[:, step].contiguous(), -1, position=options["position"] + step
            )
            for step in range(2)
        ],
        1,
    )[:, :, 0].contiguous()

    first, following = rejection_sampler(**inputs | {"draft_tokens": tokens})

    target = inputs["target_logits"][0]
    assert_drawn_from(torch.where(first > 0, tokens[:, 0], following), target[0], 1.0)
    second = torch.where(first > 1, tokens[:, 1], following)[first > 0]
    assert_drawn_from(second, target[1], 1.0)


@pytest.mark.parametrize(("sampler", "with_residuals"), PATHS)
def test_greedy_accepts_what_the_target_would_choose(
    sampler: Sampler, with_residuals: Sampler
) -> None:
    target = torch.randn(5, 4, 50, generator=torch.Generator().manual_seed(2)).mul(4).round()
    best = target.argmax(-1).int()
    tokens = best[:, :3].clone()
    tokens[1, 0] += 1 if tokens[1, 0] < 49 else -1
    tokens[2, 2] += 1 if tokens[2, 2] < 49 else -1
    tokens[3, 1] = -1
    tokens[4, 1] = 50
    draft = torch.randn(5, 3, 50)
    wanted = [3, 0, 2, 1, 1]

    for logits in (draft, None):
        first, following = sampler(tokens, logits, target, temperature=0.0)
        same_first, recovered, bonus = with_residuals(tokens, logits, target, temperature=0.0)

        assert first.tolist() == same_first.tolist() == wanted
        assert following.tolist() == [int(best[row, step]) for row, step in enumerate(wanted)]
        assert torch.equal(recovered, best[:, :3])
        assert torch.equal(bonus, best[:, 3])


@pytest.mark.parametrize(("sampler", "with_residuals"), PATHS)
def test_residuals_hold_what_follows_and_the_bonus_is_a_plain_draw(
    sampler: Sampler, with_residuals: Sampler
) -> None:
    inputs = {k: v[:6] if isinstance(v, torch.Tensor) else v for k, v in drafted(True, 0.8).items()}

    first, following = sampler(**inputs)
    same_first, recovered, bonus = with_residuals(**inputs)

    assert torch.equal(first, same_first)
    every = torch.cat((recovered, bonus[:, None]), 1)
    assert torch.equal(every.gather(1, first[:, None].long())[:, 0], following)
    plain = topk_fused_sampling(
        inputs["target_logits"][:, 2].contiguous(),
        0,
        temperature=0.8,
        position=inputs["position"] + 2,
    )
    assert torch.equal(bonus, plain[:, 0])


@pytest.mark.parametrize(("sampler", "with_residuals"), PATHS)
def test_a_draft_equal_to_the_target_is_accepted(sampler: Sampler, with_residuals: Sampler) -> None:
    target = torch.randn(4, 3, 30, generator=torch.Generator().manual_seed(3))
    draft = target[:, :2].contiguous()
    tokens = draft.softmax(-1).flatten(0, 1).multinomial(1).view(4, 2).int()

    first, recovered, _ = with_residuals(tokens, draft, target)

    assert first.tolist() == [2] * 4
    assert torch.equal(recovered, draft.argmax(-1).int())


def test_wrong_inputs_are_named() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int32)
    draft, target = torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)
    for sampler in (rejection_sampler, rejection_sampler_with_residuals):
        with pytest.raises(ValueError, match="draft_tokens must be of int32, got int64"):
            sampler(tokens.long(), draft, target)
        with pytest.raises(ValueError, match="the steps of draft_tokens must be from 1 to 1023"):
            sampler(tokens[:, :0].contiguous(), draft, target)
        with pytest.raises(ValueError, match=r"target_logits must be \[2, 4, V\], got \[2, 3, 5\]"):
            sampler(tokens, draft, draft)
        with pytest.raises(ValueError, match=r"draft_logits must be \[2, 3, 5\], got \[2, 3, 6\]"):
            sampler(tokens, torch.zeros(2, 3, 6), target)
        with pytest.raises(ValueError, match="the vocabulary of target_logits must be from 1"):
            sampler(tokens, None, torch.zeros(2, 4, 0))
        with pytest.raises(ValueError, match="temperature must be from 0.0 to"):
            sampler(tokens, draft, target, temperature=-1.0)
