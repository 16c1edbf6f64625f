"""Every case of the parity table: logits of each position, run whole, in chunks and decoded."""

from pathlib import Path

import pytest
from parity.cases import Case, all_cases

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_of_every_position_equal_transformers(case: Case, tmp_path: Path) -> None:
    errors = case.measure(tmp_path)

    assert errors.worst <= errors.bound
    assert errors.scale > 1
    assert errors.bound < errors.scale / 4


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]

    assert len(names) == len(set(names))
