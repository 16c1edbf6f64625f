"""Write the table of `quire serve` options into README.md, or check that it is there.

python tools/render_flags.py            rewrite the table between the markers
python tools/render_flags.py --check    exit 1 when README.md does not hold the current table
"""

import argparse
import sys
from pathlib import Path

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from quire.config.settings import ENV_PREFIX, ServeSettings

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- flags:begin -->", "<!-- flags:end -->"


def flags_table() -> str:
    """Markdown: one row per field of ServeSettings, in its order."""
    lines = [
        "| Flag | YAML key | Environment | Default | Meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in ServeSettings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool and field.default is True:
            flag = f"{flag}, --no-{name.replace('_', '-')}"
        flag = ", ".join(f"`{part}`" for part in flag.split(", "))
        variable = f"`{ENV_PREFIX}{name.upper()}`"
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| {flag} | `{name}` | {variable} | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == ():
        return ""
    if isinstance(value, ByteSize):
        return f"`{value.human_readable()}`"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def with_table(readme: str, table: str) -> str:
    """README text with the part between the markers replaced.

    Raises:
        ValueError: a marker is missing, doubled, or they are in the wrong order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN} and {END} once each")
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"README.md has {END} before {BEGIN}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    current = README.read_text(encoding="utf-8") if README.is_file() else ""
    try:
        wanted = with_table(current, flags_table())
    except ValueError as error:
        print(error)
        return 1
    if options.check:
        if wanted != current:
            print("README.md: the flags table is old; run python tools/render_flags.py")
        return int(wanted != current)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
