import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from quire.config.limits import LIMITS
from quire.server import errors
from quire.server.openai.request_model import RequestModel

Tool = Callable[[str], ModuleType]

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
TRANSLATED = {"ChatOfResponse"}
"""Request objects that the server makes of others."""


def kinds(base: type[RequestModel] = RequestModel) -> Iterator[type[RequestModel]]:
    """The server's request objects."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("quire.") and kind.__name__ not in TRANSLATED:
            yield kind
        yield from kinds(kind)


def sections(page: str) -> dict[str, str]:
    """The text below each heading of the third level."""
    parts = re.split(r"^##+ (.*)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_is_current(tool: Tool) -> None:
    assert tool("render_api").page() == PAGE.read_text(), "run python tools/render_api.py"


def test_every_field_of_every_request_object_is_on_the_page(tool: Tool) -> None:
    page = tool("render_api").page()
    found = sections(page)
    refused = found["Fields that are not served"]
    missing = []
    for kind in kinds():
        # Namesakes have their tag behind their name.
        own = "".join(text for name, text in found.items() if name.split(" ")[0] == kind.__name__)
        if not own and kind.__subclasses__():
            continue  # A base, whose fields are in those that are sent.
        for name, field in kind.model_fields.items():
            row = f"| `{field.alias or name}` |"
            if row not in (refused if name in kind.unsupported else own):
                missing.append(f"{kind.__name__}.{name}")
        missing += [f"{kind.__name__}.{name}" for name in kind.unsupported if name not in refused]
        missing += [f"{kind.__name__}.{name}" for name in kind.without_effect if name not in own]

    assert missing == []


def test_every_route_parameter_and_field_has_a_meaning(tool: Tool) -> None:
    page = tool("render_api").page()
    served, _, rest = page.partition("## Fields that are not served")
    blank = []
    for line in served.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].startswith("`"):
            # Of a route: what it does, and its body, if any; else the meaning comes last.
            is_route = len(cells) == 3
            is_path = len(cells) == 5 and f"{{{cells[1].strip('`')}}}" in cells[0]
            blank += [line] if not is_path and not cells[1 if is_route else -1] else []

    assert len(served) > 10_000 and rest
    assert blank == []


def test_every_error_and_every_limit_is_on_the_page(tool: Tool) -> None:
    page = tool("render_api").page()
    codes = {kind.code for kind in vars(errors).values() if hasattr(kind, "code")} - {None}

    assert [code for code in codes if f"| `{code}` |" not in page] == []
    assert [name for name in dataclasses.asdict(LIMITS) if f"| `{name}` |" not in page] == []


def test_a_field_that_is_added_changes_the_page(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_api = tool("render_api")
    public, admin = render_api.documents()
    body = public["paths"]["/v1/completions"]["post"]["requestBody"]["content"]
    schema = body["application/json"]["schema"]
    schema["properties"]["colour"] = {"type": "string", "maxLength": 7, "description": "Of text."}
    monkeypatch.setattr(render_api, "documents", lambda: (public, admin))

    assert "| `colour` | string (at most 7 characters) |  | Of text. |" in render_api.page()
