"""Pages copied, zeroed and swapped, and the others as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.kernels.kv_pages import copy_pages, swap_pages, zero_pages
from quire.kernels.kv_pages.kernel import copy_pages_triton, zero_pages_triton

CACHE_DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn]
COPY = [pytest.param(copy_pages, id="cpu"), pytest.param(copy_pages_triton, id="triton")]
ZERO = [pytest.param(zero_pages, id="cpu"), pytest.param(zero_pages_triton, id="triton")]


def random_cache(
    dtype: torch.dtype = torch.float32, pages: int = 6, page: tuple[int, ...] = (2, 3, 5)
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(pages, *page, generator=generator).to(dtype)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", CACHE_DTYPES, ids=str)
@pytest.mark.parametrize("copy", COPY)
def test_copies_pages(
    copy: Callable[..., None], dtype: torch.dtype, index_dtype: torch.dtype
) -> None:
    cache = random_cache(dtype)
    expected = cache.clone()
    for source, target in ((4, 0), (2, 5), (4, 3)):
        expected[target] = cache[source]

    copy(cache, torch.tensor([4, 2, 4]).to(index_dtype), torch.tensor([0, 5, 3]).to(index_dtype))

    assert torch.equal(bytes_of(cache), bytes_of(expected))


@pytest.mark.parametrize("copy", COPY)
def test_pages_larger_than_a_block_are_copied_whole(copy: Callable[..., None]) -> None:
    cache = random_cache(pages=2, page=(3, 16, 88))

    copy(cache, torch.tensor([1]), torch.tensor([0]))

    assert torch.equal(cache[0], cache[1])


@pytest.mark.parametrize("copy", COPY)
def test_pairs_outside_the_cache_are_skipped(copy: Callable[..., None]) -> None:
    cache = random_cache()
    before = cache.clone()

    copy(cache, torch.tensor([-1, 0, 6, 2]), torch.tensor([3, -1, 4, 6]))

    assert torch.equal(cache, before)


@pytest.mark.parametrize("dtype", CACHE_DTYPES, ids=str)
@pytest.mark.parametrize("zero", ZERO)
def test_zeroes_pages_of_any_content(zero: Callable[..., None], dtype: torch.dtype) -> None:
    cache = random_cache(dtype)
    cache[2] = torch.full_like(cache[2], torch.nan)
    expected = cache.clone()
    bytes_of(expected)[[2, 4]] = 0

    zero(cache, torch.tensor([4, -1, 2, 6, 4]))

    assert torch.equal(bytes_of(cache), bytes_of(expected))


@pytest.mark.parametrize("run", [*COPY, *ZERO])
def test_no_pages_change_nothing(run: Callable[..., None]) -> None:
    cache = random_cache()
    before = cache.clone()
    none = torch.zeros(0, dtype=torch.int64)

    run(cache, none, none) if "copy" in run.__name__ else run(cache, none)

    assert torch.equal(cache, before)


@pytest.mark.parametrize("dtype", CACHE_DTYPES, ids=str)
def test_swaps_out_and_in(dtype: torch.dtype) -> None:
    device_cache, host_cache = random_cache(dtype), random_cache(dtype, pages=9).flip(1)
    before, host_before = device_cache.clone(), host_cache.clone()
    pages, places = [3, 4, 5, 0], [6, 7, 8, 2]

    swap_pages(device_cache, host_cache, pages, places)

    assert torch.equal(bytes_of(host_cache[places]), bytes_of(before[pages]))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(bytes_of(host_cache[others]), bytes_of(host_before[others]))
    bytes_of(device_cache).zero_()
    swap_pages(host_cache, device_cache, places, pages)
    assert torch.equal(bytes_of(device_cache[pages]), bytes_of(before[pages]))
    assert not bytes_of(device_cache[[1, 2]]).any()


def test_torch_knows_swap_pages() -> None:
    source, target = random_cache(), random_cache().flip(0)
    assert torch.ops.quire.swap_pages.default._schema.arguments[1].alias_info.is_write

    torch.library.opcheck(
        torch.ops.quire.swap_pages.default,
        (source, target, [0, 1, 5], [3, 4, 0]),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_neighbouring_pages_swap_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    copy = torch.Tensor.copy_

    def counted(self: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> torch.Tensor:
        assert non_blocking
        sizes.append(len(source))
        return copy(self, source)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    swap_pages(random_cache(), random_cache(), [0, 1, 2, 4, 5, 3], [1, 2, 3, 4, 5, 0])
    swap_pages(random_cache(), random_cache(), [], [])
    swap_pages(random_cache(), random_cache(), [2, 1, 0], [2, 1, 0])

    assert sizes == [3, 2, 1, 1, 1, 1]


CACHE = random_cache()
ONE = torch.tensor([1])
WRONG: list[tuple[Callable[..., None], tuple[Any, ...], str]] = [
    (
        copy_pages,
        (CACHE[0], ONE, ONE),
        r"cache must be \[pages, K, page_size, D\], got \[2, 3, 5\]",
    ),
    (copy_pages, (CACHE.double(), ONE, ONE), "cache must be of .* got float64"),
    (copy_pages, (CACHE.mT, ONE, ONE), "cache must be contiguous"),
    (copy_pages, (CACHE, ONE.half(), ONE), "source_pages must be of int32 or int64, got float16"),
    (copy_pages, (CACHE, ONE, ONE.int()), "target_pages must be of int64, got int32"),
    (copy_pages, (CACHE, ONE, torch.ones(2).long()), r"target_pages must be \[1\], got \[2\]"),
    (zero_pages, (CACHE.mT, ONE), "cache must be contiguous"),
    (zero_pages, (CACHE, ONE[None]), r"pages must be \[N\], got \[1, 1\]"),
    (zero_pages, (CACHE, ONE.bool()), "pages must be of int32 or int64, got bool"),
    (swap_pages, (CACHE, CACHE, [0], [1]), "must be two caches, got one"),
    (swap_pages, (CACHE.int(), CACHE, [0], [1]), "source_cache must be of .* got int32"),
    (swap_pages, (CACHE, CACHE.half(), [0], [1]), "target_cache must be of float32, got float16"),
    (swap_pages, (CACHE, CACHE[:, :1], [0], [1]), r"target_cache must be \[pages, 2, 3, 5\]"),
    (swap_pages, (CACHE, CACHE.clone(), [6], [1]), "source_pages must be from 0 to 5, got 6"),
    (swap_pages, (CACHE, CACHE.clone(), [1], [-1]), "target_pages must be from 0 to 5, got -1"),
    (swap_pages, (CACHE, CACHE.clone(), [1, 2], [1]), "must be of one length, got 2 and 1"),
    (swap_pages, (CACHE, CACHE.clone(), [1, 2], [3, 3]), r"target_pages must be distinct.* \[3, 3"),
    (
        swap_pages,
        (CACHE.to("meta"), CACHE, [0], [0]),
        "target_cache must be in pinned memory, got pageable",
    ),
    (
        swap_pages,
        (CACHE, CACHE.to("meta"), [0], [0]),
        "source_cache must be in pinned memory, got pageable",
    ),
]


@pytest.mark.parametrize(("run", "arguments", "message"), WRONG)
def test_wrong_inputs_are_named(
    run: Callable[..., None], arguments: tuple[Any, ...], message: str
) -> None:
    before = CACHE.clone()
    with pytest.raises(ValueError, match=message):
        run(*arguments)
    assert torch.equal(CACHE, before)
