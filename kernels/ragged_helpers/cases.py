"""Cases of the ragged helpers: empty contexts, skipped rows and more contexts than a block."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from quire.kernels.cases import Case, Operation

Build = Callable[[torch.device, torch.Generator], dict[str, Any]]


def offsets_of(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def index_case(name: str, dtype: torch.dtype, build: Build, num_bytes: int) -> Case:
    return Case(name, dtype, build, tolerance=0.0, bytes_moved=num_bytes, flops=0)


def merge_case(
    lengths: tuple[Sequence[int], Sequence[int]], row: tuple[int, ...], dtype: torch.dtype
) -> Case:
    """A case of rows of shape `row`, so many per context of a and of b."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        rows = [
            (torch.randn(sum(counts), *row, generator=generator) * 99).to(device, dtype)
            for counts in lengths
        ]
        offsets = [offsets_of(counts).to(device) for counts in lengths]
        return {
            "a": rows[0],
            "a_row_offsets": offsets[0],
            "b": rows[1],
            "b_row_offsets": offsets[1],
        }

    count = sum(map(sum, lengths))
    elements = torch.Size(row).numel()
    name = f"{len(lengths[0])}-contexts-{count}-rows-{str(dtype)[6:]}"
    return index_case(name, dtype, build, 2 * count * elements * dtype.itemsize)


def lengths_case(count: int) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        lengths = torch.randint(0, 99, (count,), dtype=torch.int32, generator=generator)
        return {"lengths": lengths.to(device)}

    return index_case(f"{count}", torch.int32, build, 8 * count + 4)


def max_case(count: int) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        new = torch.randint(0, 99, (count,), generator=generator)
        old = torch.randint(0, 999, (count,), dtype=torch.int32, generator=generator)
        offsets = offsets_of(new.tolist())
        return {"cache_lengths": old.to(device), "input_row_offsets": offsets.to(device)}

    return index_case(f"{count}", torch.int32, build, 8 * count + 8)


def table_case(count: int, table: tuple[int, int], dtype: torch.dtype, with_tokens: bool) -> Case:
    """A case of `count` rows, every third of them skipped."""

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        slots = torch.randperm(table[0], generator=generator)[:count].to(dtype)
        slots[::3] = -1
        tokens = torch.randint(0, 2**17, table, dtype=torch.int32, generator=generator)
        positions = torch.randint(0, table[1], (count,), dtype=torch.int32, generator=generator)
        sampled = torch.randint(0, 2**17, (count,), generator=generator)
        inputs = {
            "token_table": tokens.to(device),
            "slots": slots.to(device),
            "positions": positions.to(device),
        }
        return inputs | ({"tokens": sampled.to(device, dtype)} if with_tokens else {})

    name = f"{count}-rows-{str(dtype)[6:]}"
    return index_case(name, torch.int32, build, count * (2 * dtype.itemsize + 8))


def _operation(
    name: str, small: tuple[Case, ...], served: tuple[Case, ...], **options: Any
) -> Operation:
    return Operation(
        name=name,
        package="ragged_helpers",
        small=small,
        served=served,
        compiled=served[:1],
        **options,
    )


OPERATIONS = (
    _operation(
        "merge_ragged_tensors",
        (
            merge_case(([2, 4], [3, 1]), (), torch.int32),
            merge_case(([0, 3, 0, 2], [1, 0, 0, 2]), (3, 5), torch.bfloat16),
            merge_case(([0, 0, 2], [0, 0, 0]), (1030,), torch.float32),
        ),
        (merge_case(([16] * 32, [1] * 32), (4096,), torch.bfloat16),),
    ),
    _operation("row_offsets", (lengths_case(3), lengths_case(1500)), (lengths_case(256),)),
    _operation("kv_cache_get_max_seq_len", (max_case(1), max_case(1500)), (max_case(256),)),
    *(
        _operation(
            name,
            (
                table_case(5, (7, 11), torch.int32, is_scatter),
                table_case(200, (201, 3), torch.int64, is_scatter),
            ),
            (table_case(256, (256, 8192), torch.int32, is_scatter),),
            mutates=("token_table",) if is_scatter else (),
            row_inputs=() if is_scatter else ("slots", "positions"),
        )
        for name, is_scatter in (("gather_tokens", False), ("scatter_tokens", True))
    ),
)
