"""Caches and tables of more than 2^31 elements: an offset in 32 bits would wrap."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from quire.kernels.fused_qk_ragged_rope.kernel import fused_qk_ragged_rope_triton
from quire.kernels.kv_pages.kernel import copy_pages_triton, zero_pages_triton
from quire.kernels.ragged_helpers.kernel import gather_tokens_triton, scatter_tokens_triton
from quire.kernels.rms_norm_key_cache.kernel import rms_norm_key_cache_triton
from quire.kernels.split_qkv_ragged.cases import one_token_contexts
from quire.kernels.split_qkv_ragged.kernel import split_qkv_ragged_triton

PAGE_SIZE, HEAD_DIM = 16, 64
FAR_PAGE = 2**31 // (PAGE_SIZE * HEAD_DIM) + 3
FAR_SLOT = FAR_PAGE * PAGE_SIZE + 5


def far_cache() -> torch.Tensor:
    """Zeros that the system backs where they are touched; torch.zeros would touch them all."""
    return torch.from_numpy(np.zeros((FAR_PAGE + 1, 1, PAGE_SIZE, HEAD_DIM), dtype=np.float16))


FAR_BATCH = one_token_contexts(torch.zeros(1, dtype=torch.int32), torch.tensor([FAR_SLOT]))
QKV = torch.arange(1, 1 + 3 * HEAD_DIM).half()[None]
NO_TURN = torch.cat((torch.ones(1, HEAD_DIM // 2), torch.zeros(1, HEAD_DIM // 2)), 1)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(split_qkv_ragged_triton, id="split"),
        pytest.param(partial(fused_qk_ragged_rope_triton, cos_sin=NO_TURN), id="rope"),
    ],
)
def test_keys_and_values_are_written_far_into_the_cache(
    write: Callable[..., torch.Tensor],
) -> None:
    k_cache, v_cache = far_cache(), far_cache()

    write(qkv=QKV, k_cache=k_cache, v_cache=v_cache, batch=FAR_BATCH, num_heads=1)

    for cache, expected in zip((k_cache, v_cache), QKV[0].split(HEAD_DIM)[1:], strict=True):
        assert torch.equal(cache[FAR_PAGE, 0, 5], expected)


def test_rows_far_apart_are_split() -> None:
    stride = 2**30
    rows = torch.from_numpy(np.zeros(2 * stride + 3 * HEAD_DIM, dtype=np.float16))
    qkv = rows.as_strided((3, 3 * HEAD_DIM), (stride, 1))
    qkv[2] = QKV[0]
    batch = one_token_contexts(torch.zeros(3, dtype=torch.int32), torch.arange(3))
    k_cache, v_cache = (torch.zeros(1, 1, PAGE_SIZE, HEAD_DIM).half() for _ in range(2))

    q = split_qkv_ragged_triton(qkv, k_cache, v_cache, batch, num_heads=1)

    assert torch.equal(torch.cat((q[2, 0], k_cache[0, 0, 2], v_cache[0, 0, 2])), QKV[0])


def test_angles_far_into_the_table_are_read() -> None:
    position = 2**31 // HEAD_DIM + 1
    cos_sin = torch.from_numpy(np.zeros((position + 1, HEAD_DIM), dtype=np.float32))
    cos_sin[position] = NO_TURN[0]
    batch = one_token_contexts(torch.tensor([position], dtype=torch.int32), torch.tensor([0]))
    k_cache, v_cache = (torch.zeros(1, 1, PAGE_SIZE, HEAD_DIM).half() for _ in range(2))

    q = fused_qk_ragged_rope_triton(QKV, cos_sin, k_cache, v_cache, batch, num_heads=1)

    assert torch.equal(q[0, 0], QKV[0, :HEAD_DIM])


def test_keys_far_into_the_cache_are_normalized() -> None:
    cache = far_cache()
    cache[FAR_PAGE, 0, 5] = 3

    rms_norm_key_cache_triton(cache, torch.ones(HEAD_DIM).half(), 0.0, FAR_BATCH)

    assert cache[FAR_PAGE, 0, 5].eq(1).all()


def test_pages_far_into_the_cache_are_copied_and_zeroed() -> None:
    cache = far_cache()
    cache[1] = 5
    near, far = torch.tensor([1], dtype=torch.int32), torch.tensor([FAR_PAGE], dtype=torch.int32)

    copy_pages_triton(cache, near, far)

    assert cache[FAR_PAGE].eq(5).all()
    zero_pages_triton(cache, near)
    copy_pages_triton(cache, far, near)
    assert cache[1].eq(5).all()
    zero_pages_triton(cache, far)
    assert not cache[FAR_PAGE].any()


def test_tokens_far_into_the_table_are_written_and_read() -> None:
    table = torch.from_numpy(np.zeros((2**16 + 1, 2**15), dtype=np.int32))
    slots = torch.tensor([2**16], dtype=torch.int32)
    positions = torch.tensor([2**15 - 1], dtype=torch.int32)

    scatter_tokens_triton(table, slots, positions, torch.tensor([77]))

    assert table[2**16, 2**15 - 1] == 77
    assert gather_tokens_triton(table, slots, positions).tolist() == [77]
