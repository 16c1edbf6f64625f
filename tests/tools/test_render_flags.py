from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from quire.config.settings import ServeSettings

Tool = Callable[[str], ModuleType]

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_current_table(tool: Tool) -> None:
    render_flags, text = tool("render_flags"), README.read_text()

    assert render_flags.with_table(text, render_flags.flags_table()) == text


def test_every_option_has_a_row_with_a_meaning(tool: Tool) -> None:
    rows = tool("render_flags").flags_table().splitlines()[2:]

    assert len(rows) == len(ServeSettings.model_fields)
    for row, name in zip(rows, ServeSettings.model_fields, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert f"`--{name.replace('_', '-')}`" in cells[0]
        assert cells[1:3] == [f"`{name}`", f"`QUIRE_{name.upper()}`"]
        assert cells[4] != ""


def test_rewriting_twice_changes_nothing_more(tool: Tool) -> None:
    render_flags = tool("render_flags")
    text = f"# Title\n\n{render_flags.BEGIN}\nold\n{render_flags.END}\n\nmore\n"

    once = render_flags.with_table(text, "| new |")

    assert "old" not in once
    assert "| new |" in once
    assert once.endswith("\n\nmore\n")
    assert render_flags.with_table(once, "| new |") == once


@pytest.mark.parametrize("text", ["", "{BEGIN}", "{END} {BEGIN}", "{BEGIN} {BEGIN} {END}"])
def test_a_readme_without_its_markers_is_refused(tool: Tool, text: str) -> None:
    render_flags = tool("render_flags")
    text = text.replace("{BEGIN}", render_flags.BEGIN).replace("{END}", render_flags.END)

    with pytest.raises(ValueError, match="README.md"):
        render_flags.with_table(text, "table")
