"""Which tile the dense kernel takes, and which library multiplies."""

import pytest
import torch

from quire.kernels.linear.cases import ROWS_AND_WIDTH_BY_TILE
from quire.kernels.linear.dispatch import CHOICES, EVERY_COUNT, Choice, library_for
from quire.kernels.linear.kernel import TILES_16_BIT
from quire.kernels.linear.tiles import DESIGN_CHIP, choose_tile

HALF = torch.empty(0, dtype=torch.bfloat16)


def test_tiles_stay_within_one_family_of_instructions() -> None:
    """wgmma takes 64 rows and 4 warps at a time; a step of K is 16 wide."""
    for tile in TILES_16_BIT:
        assert tile.rows % 64 == 0
        assert tile.warps % 4 == 0
        assert tile.depth % 16 == 0


def test_the_tile_loads_least_on_the_busiest_processor() -> None:
    chosen = [choose_tile(TILES_16_BIT, *shape, HALF)[0] for shape in ROWS_AND_WIDTH_BY_TILE]

    assert chosen == list(TILES_16_BIT)
    for rows, width in ((1, 1), (1, 151936), (64, 576), (8192, 28672)):
        tile, stages = choose_tile(TILES_16_BIT, rows, width, HALF)
        least = min(
            other.loads(rows, width, DESIGN_CHIP[0])
            for other in TILES_16_BIT
            if other.rows == 64 or other.rows < 2 * rows
        )
        assert tile.loads(rows, width, DESIGN_CHIP[0]) == least
        assert stages == tile.stages


def test_tiles_that_do_not_fit_into_shared_memory_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An L40S has 99 KiB for a thread block, an H200 227."""
    monkeypatch.setattr("quire.kernels.linear.tiles.DESIGN_CHIP", (142, 99 * 1024))
    for rows in (1, 40, 512, 8192):
        tile, stages = choose_tile(TILES_16_BIT, rows, 28672, HALF)
        assert stages >= 3
        assert stages * (tile.rows + tile.columns) * tile.depth * 2 <= 99 * 1024


def test_one_that_fits_nowhere_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.kernels.linear.tiles.DESIGN_CHIP", (4, 16 * 1024))

    assert choose_tile(TILES_16_BIT, 1, 64, HALF) == (TILES_16_BIT[-1], 1)


def test_the_first_row_of_the_table_that_covers_a_call_decides() -> None:
    measured = (
        Choice(True, 90, torch.bfloat16, EVERY_COUNT, "vendor", "measured"),
        Choice(False, 90, torch.bfloat16, (1, 16), "triton", "measured"),
    )
    table = measured + CHOICES

    assert library_for(True, 90, torch.bfloat16, 5, table) == "vendor"
    assert library_for(True, 80, torch.bfloat16, 5, table) == "triton"
    assert library_for(True, 90, torch.float32, 5, table) == "triton"
    by_rows = [library_for(False, 90, torch.bfloat16, rows, table) for rows in (0, 1, 16, 17)]
    assert by_rows == ["triton", "triton", "triton", "vendor"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_exact_calls_keep_one_library_for_every_number_of_rows(
    capability: int, dtype: torch.dtype
) -> None:
    edges = {1, 2**20} | {edge for choice in CHOICES for edge in choice.rows}
    assert len({library_for(True, capability, dtype, rows) for rows in edges}) == 1


def test_an_exact_choice_by_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must cover rows \(1, 2147483647\), got \(1, 16\)"):
        Choice(True, 90, torch.bfloat16, (1, 16), "vendor", "measured")
