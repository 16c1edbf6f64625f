"""Measure every parity case; write pipelines/architectures/parity.json and docs/models.md.

python tools/render_models.py            measure, then write both
python tools/render_models.py --check    exit 1 unless both belong to the cases there are
"""

import json
import platform
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "shared"))

import transformers
from parity.cases import Case, all_cases

from quire.pipelines.architectures.parity import (
    ParityRow,
    format_error,
    totals,
)
from quire.pipelines.architectures.served import listed_architectures

DATA = ROOT / "pipelines" / "architectures" / "parity.json"
PAGE = ROOT / "docs" / "models.md"

HEAD = """# Models

Made by `python tools/render_models.py`, which also measures; `quire list` prints the first table.

Each case is a random tiny model of transformers, written as a checkpoint, loaded as a worker loads
it, and run over 70 tokens three ways: in one step (prefill), cut at random places (chunked), and
with the last 40 tokens one by one (decode). Errors are the greatest difference of any logit of any
position from transformers' own; in bfloat16 they are root mean squares of the difference from
transformers in float32, and the bound is 1.25 times what transformers in bfloat16 has. Of quantized
weights the reference has the dequantized ones; of w8a8 its activations go through the same int8, where
the last bit of a sum may decide a rounding, and errors are root mean squares. `make test` runs every case.

"""

FOOT = """
`--engine huggingface` serves what is not listed through transformers' own code, slower.
`--custom-architectures` adds a model of yours: see [custom-architecture.md](custom-architecture.md).

The classes with `ForConditionalGeneration` are models that also see: of these the text part is
served, vision weights are not read, and a request with an image is refused with status 400.
"""


def measure(case: Case) -> ParityRow:
    with tempfile.TemporaryDirectory() as folder:
        errors = case.measure(Path(folder))
    if errors.worst > errors.bound:
        raise SystemExit(f"{case.name}: {errors.worst:.2e} exceeds {errors.bound:.2e}")
    return ParityRow(
        architecture=case.architecture,
        variant=case.variant,
        encoding=case.encoding,
        prefill=errors.prefill,
        chunked=errors.chunked,
        decode=errors.decode,
        bound=errors.bound,
    )


def page(data: dict[str, object], rows: list[ParityRow]) -> str:
    lines = [HEAD, f"Measured with {data['measured_with']}.\n\n"]
    lines.append("| Architecture | Encoding | Cases | Prefill | Chunked | Decode | Bound |\n")
    lines.append("| --- | --- | --: | --: | --: | --: | --: |\n")
    for total in totals(rows):
        errors = [total.prefill, total.chunked, total.decode, total.bound]
        cells = [total.architecture, total.encoding, str(total.num_cases)]
        lines.append(f"| {' | '.join(cells + [format_error(error) for error in errors])} |\n")
    lines.append("\n## Examples\n\n| Architecture | Task | Such as |\n| --- | --- | --- |\n")
    for row in listed_architectures():
        lines.append(f"| {row.name} | {row.task} | {', '.join(row.example_repo_ids)} |\n")
    lines.append("\n## Every case\n\n| Architecture | Case | Encoding | Worst | Bound |\n")
    lines.append("| --- | --- | --- | --: | --: |\n")
    for row in rows:
        worst = max(error for error in (row.prefill, row.chunked, row.decode) if error is not None)
        cells = [row.architecture, row.variant, row.encoding]
        cells += [format_error(worst), format_error(row.bound)]
        lines.append(f"| {' | '.join(cells)} |\n")
    lines.append(FOOT)
    return "".join(lines)


def versions() -> str:
    names = ("torch", "transformers")
    found = [f"{name} {metadata.version(name)}" for name in names]
    return ", ".join([*found, f"Python {platform.python_version()}", platform.machine()])


def main() -> None:
    order = {row.name: index for index, row in enumerate(listed_architectures())}
    cases = sorted(all_cases(), key=lambda case: (order[case.architecture], case.encoding))
    if sys.argv[1:] != ["--check"]:
        transformers.logging.disable_progress_bar()
        rows = [measure(case) for case in cases]
        data = {"measured_with": versions(), "rows": [asdict(row) for row in rows]}
        DATA.write_text(json.dumps(data, indent=1) + "\n")
        PAGE.write_text(page(data, rows))
        return
    data = json.loads(DATA.read_text())
    rows = [ParityRow(**row) for row in data["rows"]]
    measured = {(row.architecture, row.variant, row.encoding) for row in rows}
    expected = {(case.architecture, case.variant, case.encoding) for case in cases}
    unmeasured = set(order) - {row.architecture for row in rows}
    if measured != expected or unmeasured or PAGE.read_text() != page(data, rows):
        different = sorted(measured ^ expected) or sorted(unmeasured) or [PAGE.name]
        raise SystemExit(f"run tools/render_models.py: out of date: {different[:5]}")


if __name__ == "__main__":
    main()
