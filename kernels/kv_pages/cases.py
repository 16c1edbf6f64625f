"""Cases of `copy_pages` and `zero_pages`: odd pages and padded lists in small."""

from typing import Any

import torch

from quire.kernels.cases import Case, Operation


def pages_case(
    name: str,
    dtype: torch.dtype,
    page: tuple[int, int, int],
    num_pages: int,
    count: int,
    *,
    is_copy: bool,
    index_dtype: torch.dtype = torch.int64,
    padding: int = 0,
) -> Case:
    """A case of `count` pages of shape `page` and as many copies, then `padding` times -1."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        cache = torch.randn(num_pages, *page, generator=generator).to(device, dtype)
        order = torch.randperm(num_pages, generator=generator)
        skipped = torch.full((padding,), -1)

        def pages(start: int) -> torch.Tensor:
            return torch.cat((order[start : start + count], skipped)).to(device, index_dtype)

        if not is_copy:
            return {"cache": cache, "pages": pages(0)}
        return {"cache": cache, "source_pages": pages(0), "target_pages": pages(count)}

    elements = page[0] * page[1] * page[2]
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=(1 + is_copy) * count * elements * dtype.itemsize,
        flops=0,
    )


def _operation(name: str, is_copy: bool) -> Operation:
    served = tuple(
        pages_case(f"{n}-pages-8B", torch.bfloat16, (8, 32, 128), 256, n, is_copy=is_copy)
        for n in (1, 64)
    )
    return Operation(
        name=name,
        package="kv_pages",
        small=(
            pages_case("fp32", torch.float32, (2, 4, 6), 9, 4, is_copy=is_copy, padding=2),
            pages_case(
                "bf16", torch.bfloat16, (3, 16, 96), 5, 2, is_copy=is_copy, index_dtype=torch.int32
            ),
            pages_case("fp8", torch.float8_e4m3fn, (1, 5, 3), 7, 3, is_copy=is_copy),
        ),
        served=served,
        compiled=served[:1],
        mutates=("cache",),
    )


OPERATIONS = (_operation("copy_pages", True), _operation("zero_pages", False))
