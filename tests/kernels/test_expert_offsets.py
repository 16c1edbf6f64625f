"""Experts, adapters and rows beyond 2^31 elements: an offset in 32 bits would wrap."""

import numpy as np
import torch

from quire.kernels.grouped_matmul_ragged.kernel import (
    grouped_matmul_ragged_triton,
    grouped_matmul_swiglu_ragged_triton,
)
from quire.kernels.moe_combine.kernel import moe_combine_kernel
from quire.kernels.ragged_helpers.kernel import place_rows_kernel
from quire.kernels.sgmv_lora.kernel import sgmv_qkv_lora_kernel_triton

WIDTH = 512


def far(*row: int) -> torch.Tensor:
    """Zeros of rows of this shape, the last beyond 2^31 elements.

    The system backs them where they are touched; torch.zeros would touch them all.
    """
    rows = 2**31 // int(np.prod(row)) + 2
    return torch.from_numpy(np.zeros((rows, *row), dtype=np.float16))


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_an_expert_far_into_the_weights_is_read() -> None:
    weight = far(4, WIDTH)
    weight[-1] = 1 / 16
    experts = len(weight)
    starts, ids = int32(0).expand(experts + 1).clone(), int32(-1).expand(experts).clone()
    starts[1:], ids[0] = 1, experts - 1
    x = torch.ones(1, WIDTH).half()

    plain = grouped_matmul_ragged_triton(x, weight, starts, ids)
    gated = grouped_matmul_swiglu_ragged_triton(x, weight, starts, ids, alpha=0.0)

    assert plain.tolist() == [[WIDTH / 16] * 4]
    assert gated.tolist() == [[(WIDTH / 16) ** 2 / 2] * 2]


def test_a_row_far_into_the_activations_is_read() -> None:
    x = far(WIDTH)
    x[-1, :8] = 1

    out = grouped_matmul_ragged_triton(
        x,
        torch.ones(1, 1, WIDTH).half(),
        int32(0, 1),
        int32(0),
        token_expert_order=int32(len(x) - 1),
    )

    assert out.tolist() == [[8]]


def test_an_adapter_far_into_the_bank_is_read() -> None:
    lora_a, lora_b = far(1, 16, WIDTH), far(WIDTH, 16)
    adapter = len(lora_a) - 1
    lora_a[adapter], lora_b[adapter] = 1 / 64, 1
    qkv = torch.zeros(1, WIDTH).half()

    sgmv_qkv_lora_kernel_triton(
        torch.ones(1, WIDTH).half(),
        lora_a,
        lora_b,
        int32(adapter),
        int32(16).expand(adapter + 1).clone(),
        int32(0, 1),
        qkv,
        WIDTH // 2,
    )

    assert qkv.eq(16 * WIDTH / 64).all()


def test_a_row_far_into_the_experts_results_is_combined() -> None:
    rows, out = far(WIDTH), torch.zeros(1, WIDTH)
    rows[-1] = 3

    moe_combine_kernel[(1, 1)](
        rows, int32(len(rows) - 1), torch.full((1, 1), 2.0), out, WIDTH, 1, BLOCK=WIDTH
    )

    assert out.eq(6).all()


def test_a_row_is_merged_behind_many() -> None:
    merged = far(WIDTH)
    offsets, before = int32(0, 1), int32(0, len(merged) - 1)

    place_rows_kernel[(1, 1)](
        torch.ones(1, WIDTH).half(), offsets, before, merged, 1, 1, WIDTH, BLOCK=WIDTH
    )

    assert merged[-1].eq(1).all()


def test_rows_of_a_gigabyte_are_merged() -> None:
    columns = 2**30
    rows, merged = (torch.from_numpy(np.zeros((3, columns), dtype=np.float16)) for _ in range(2))
    rows[2, :WIDTH] = 1

    place_rows_kernel[(3, 1)](rows, int32(0, 3), int32(0, 0), merged, 1, 0, columns, BLOCK=WIDTH)

    assert merged[2, :WIDTH].eq(1).all()
