from collections.abc import Callable
from pathlib import Path
from types import ModuleType

Tool = Callable[[str], ModuleType]

ROOT = Path(__file__).parents[2]


def test_the_document_is_current(tool: Tool) -> None:
    assert tool("render_kernels").document() == (ROOT / "docs" / "kernels.md").read_text()


def test_every_folder_with_a_kernel_is_listed(tool: Tool) -> None:
    text = tool("render_kernels").document()

    for path in (ROOT / "kernels").glob("*/kernel.py"):
        names = path.parent.name
        # Bodies that several ops share have no public function of their own.
        if (path.parent / "cases.py").exists():
            assert f"| `{names}` |" in text
