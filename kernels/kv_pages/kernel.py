"""Triton: pages copied and zeroed, each by several programs."""

import torch
import triton
import triton.language as tl

from quire.kernels.split_qkv_ragged.kernel import writable

BLOCK = 4096


@triton.jit(do_not_specialize=["num_pages"])
def copy_pages_kernel(
    cache, source_pages, target_pages, num_pages, page_elements, BLOCK: tl.constexpr
):
    """Grid (pairs, blocks of a page)."""
    source = tl.load(source_pages + tl.program_id(0)).to(tl.int64)
    target = tl.load(target_pages + tl.program_id(0)).to(tl.int64)
    exists = (source >= 0) & (source < num_pages) & (target >= 0) & (target < num_pages)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = exists & (element < page_elements)
    value = tl.load(cache + source * page_elements + element, mask=mask, other=0)
    tl.store(cache + target * page_elements + element, value, mask=mask)


@triton.jit(do_not_specialize=["num_pages"])
def zero_pages_kernel(cache, pages, num_pages, page_elements, BLOCK: tl.constexpr):
    """Grid (pages, blocks of a page)."""
    page = tl.load(pages + tl.program_id(0)).to(tl.int64)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (page >= 0) & (page < num_pages) & (element < page_elements)
    zeros = tl.zeros((BLOCK,), dtype=cache.dtype.element_ty)
    tl.store(cache + page * page_elements + element, zeros, mask=mask)


def copy_pages_triton(
    cache: torch.Tensor, source_pages: torch.Tensor, target_pages: torch.Tensor
) -> None:
    """As `copy_pages`."""
    page_elements = cache[:1].numel()
    if cache.numel() and len(source_pages):
        copy_pages_kernel[(len(source_pages), triton.cdiv(page_elements, BLOCK))](
            writable(cache),
            source_pages,
            target_pages,
            len(cache),
            page_elements,
            BLOCK=BLOCK,
            num_warps=8,
        )


def zero_pages_triton(cache: torch.Tensor, pages: torch.Tensor) -> None:
    """As `zero_pages`."""
    page_elements = cache[:1].numel()
    if cache.numel() and len(pages):
        zero_pages_kernel[(len(pages), triton.cdiv(page_elements, BLOCK))](
            writable(cache), pages, len(cache), page_elements, BLOCK=BLOCK, num_warps=8
        )
