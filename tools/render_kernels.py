"""Write the list of kernel ops into docs/kernels.md, or check that it is there.

python tools/render_kernels.py            rewrite the file
python tools/render_kernels.py --check    exit 1 when docs/kernels.md is old
"""

import argparse
import inspect
import sys
from itertools import groupby
from pathlib import Path

from quire.kernels.cases import Operation, every_operation

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
HEAD = """# Kernels

Made by `python tools/render_kernels.py`. One folder per op under `kernels/`: the contract and its
checks in `__init__.py`, Triton in `kernel.py`, plain torch in `reference.py` (the definition of
correct), shapes and tolerances in `cases.py`. `make test` holds each to its reference in Triton's
interpreter, `make kernels-compile` compiles each for sm_80, 90 and 100, `make bench-kernels` times it.

- Import: `from quire.kernels.<folder> import <function>`.
- **torch.ops**: also `torch.ops.quire.<function>`, with a fake kernel for torch.compile and export.
- **Exact rows**: a row's bits do not depend on the rows beside it, and a test holds it to that
  (*Triton*: on a GPU; on a CPU the engine's own path does, see ARCHITECTURE.md).
- **sm**: the least compute capability that has its data types, times ten.

Names are those of `max.nn.kernels`. Its functions for padded batches over a contiguous cache
(`flash_attention`, `flash_attention_with_causal_mask`, `fused_qk_rope`, `fused_qkv_matmul`) have no
counterpart: the ragged ones serve such batches, without the padding.

| Folder | Function | What it does | Writes | torch.ops | Exact rows | sm |
| --- | --- | --- | --- | --- | --- | --- |
"""


def summary(operation: Operation) -> str:
    """The first sentence of the function's docstring, on one line."""
    paragraph = inspect.cleandoc(operation.function().__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def row(operation: Operation, is_first: bool) -> str:
    exact = ""
    if operation.row_inputs:
        exact = "yes" if "function" in operation.row_paths else "Triton"
    cells = (
        f"`{operation.package}`" if is_first else "",
        f"`{operation.name}`",
        summary(operation),
        ", ".join(f"`{name}`" for name in operation.mutates),
        "yes" if operation.is_registered else "",
        exact,
        str(operation.min_capability),
    )
    return f"| {' | '.join(cells)} |\n"


def document() -> str:
    text = HEAD
    for _, group in groupby(every_operation(), key=lambda operation: operation.package):
        for number, operation in enumerate(group):
            text += row(operation, number == 0)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    wanted = document()
    if options.check:
        current = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.is_file() else ""
        if wanted != current:
            print("docs/kernels.md is old; run python tools/render_kernels.py")
        return int(wanted != current)
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
