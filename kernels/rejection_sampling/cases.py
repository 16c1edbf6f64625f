"""Cases of the rejection samplers: drafts near the target's distribution, some rows greedy."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation


def rejection_case(rows: int, steps: int, vocabulary: int, with_draft: bool = True) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        target = 2 * torch.randn(rows, steps + 1, vocabulary, generator=generator)
        draft = target[:, :steps] + 0.5 * torch.randn(rows, steps, vocabulary, generator=generator)
        drawn = draft.flatten(0, 1).softmax(-1).multinomial(1, generator=generator)
        tokens = drawn.view(rows, steps)
        # Greedy rows accept their first token.
        tokens[::3, 0] = target[::3, 0].argmax(-1)
        temperature = torch.tensor((0.0, 1.0, 0.8))[torch.arange(rows) % 3]
        return {
            "draft_tokens": tokens.to(device, torch.int32),
            "draft_logits": draft.to(device) if with_draft else None,
            "target_logits": target.to(device),
            "temperature": temperature.to(device),
            "seed": torch.arange(rows).to(device),
            "position": (7 * torch.arange(rows)).to(device, torch.int32),
        }

    return Case(
        name=f"{rows}x{steps}-of-{vocabulary}{'' if with_draft else '-not-drawn'}",
        dtype=torch.float32,
        build=build,
        tolerance=0.0,
        bytes_moved=4 * rows * vocabulary * (steps + 1 + (steps if with_draft else 0)),
        flops=0,
    )


SMALL_CASES = (
    rejection_case(4, 3, 97),
    rejection_case(2, 1, 5000),
    rejection_case(3, 2, 33, with_draft=False),
    rejection_case(2, 2, 1),
)
SERVED_CASES = (rejection_case(1, 4, 151936), rejection_case(32, 4, 151936))
ROW_INPUTS = (
    ("draft_tokens", "draft_logits", "target_logits")
    + ("temperature", "seed", "position")
)  # fmt: skip

OPERATIONS = tuple(
    Operation(
        name=name,
        package="rejection_sampling",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(rejection_case(4, 4, 32000, with_draft),),
        row_inputs=ROW_INPUTS,
    )
    for name, with_draft in (
        ("rejection_sampler", False),
        ("rejection_sampler_with_residuals", True),
    )
)
