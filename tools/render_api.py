"""Write docs/api.md from the OpenAPI document, the error classes and the request limits.

python tools/render_api.py            write the page
python tools/render_api.py --check    exit 1 when it is not the current one
"""

import argparse
import ast
import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quire.config import limits
from quire.config.limits import LIMITS
from quire.config.settings import ServeSettings
from quire.server.admin import build_admin_app
from quire.server.app import build_app
from quire.server.auth import load_api_keys
from quire.server.errors import ApiError
from quire.server.http_protocol import HeadersTooLarge
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import Metrics

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
Schema = Mapping[str, Any]

HEAD = """# The HTTP API

Made by `python tools/render_api.py` from what the server itself checks; a running one has the same as
`/openapi.json`.

- Types are strict: `"5"` and `true` are not 5; `5.0` is. `null` means the default.
- A field of OpenAI or of a peer that is not served is refused with status 400, unless its value asks
  for nothing; they are [listed](#fields-that-are-not-served) with those values.
- A field that nobody knows is ignored and named in the header `x-quire-warning`. It is refused if it
  looks like a constraint on the output, and with `--strict` in any case.
- Sampling defaults are those of the model's generation_config.json where it has some, unless the
  server runs with `--no-use-generation-config`.
- A stream says the same as the whole reply.

"""

HEADERS = """## Headers

| Header | Where | Meaning |
| --- | --- | --- |
| `authorization: Bearer KEY` | request | Needed when the server has API keys; `x-api-key: KEY` serves as well. |
| `content-type` | request | `application/json`, but for uploads. |
| `x-request-id` | both | The client's own id, or a new one; in every reply, error and log line. |
| `x-request-timeout` | request | Seconds after which the request is given up with status 504. |
| `x-quire-warning` | reply | What was ignored or could not be enforced. |
| `retry-after`, `retry-after-ms` | reply | With 429 and 503: when to come back. |
| `x-queue-position` | reply | With 429: the place that the request would have had in the queue. |
| `x-should-retry: false` | reply | With 500 and 504: another attempt would end the same. |
| `allow` | reply | With 405: the methods that there are. |

"""


def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """The OpenAPI documents of the public and of the admin listener."""
    settings = ServeSettings()
    keys, metrics, lifecycle = load_api_keys(settings), Metrics("model"), Lifecycle()
    absent: Any = None
    public = build_app(settings, absent, keys, metrics, lifecycle)
    admin = build_admin_app(settings, absent, keys, metrics, lifecycle)
    return public.openapi(), admin.openapi()


def page() -> str:
    public, admin = documents()
    names = Names()
    parts = [HEAD, "## Routes\n\n", *_routes(public, names)]
    parts += ["## Routes of the admin listener\n\n", *_routes(admin, names)]
    parts += ["## Request objects\n\n", *names.sections()]
    parts += ["## Fields that are not served\n\n", *_refused_table(names.schemas)]
    return "".join([*parts, *_error_table(), HEADERS, *_limit_table()])


class Names:
    """The request objects met so far, each under a name of its own."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self.schemas: dict[str, Schema] = {}
        self._tags: dict[str, str] = {}

    def link(self, schema: Schema, tag: str) -> str:
        """Markdown that leads to the section of an object; `tag` tells it from namesakes."""
        key = json.dumps(_with_integers(schema), sort_keys=True)
        if key not in self._names:
            name = schema["title"]
            if name in self.schemas:
                name = f"{name} ({tag})"
            if name in self.schemas:
                raise SystemExit(f"two request objects are called {name}")
            self._names[key] = name
            self.schemas[name] = schema
            self._tags[name] = tag
        return link_to(self._names[key])

    def sections(self) -> Iterator[str]:
        """A section per object, those that only others speak of included."""
        done: set[str] = set()
        while waiting := [name for name in self.schemas if name not in done]:
            for name in waiting:
                done.add(name)
                yield f"### {name}\n\n"
                yield from _object_section(self.schemas[name], self, self._tags[name])


def link_to(name: str) -> str:
    anchor = name.lower().replace("(", "").replace(")", "").replace(" ", "-")
    return f"[{name}](#{anchor})"


def _routes(document: Schema, names: Names) -> Iterator[str]:
    yield "| Route | What it does | Body |\n| --- | --- | --- |\n"
    parameters: list[str] = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            name = f"`{method.upper()} {path}`"
            tag = operation.get("tags", ["other"])[0]
            body = _body(operation, document, names, tag)
            yield f"| {name} | {_cell(operation.get('description', ''))} | {body} |\n"
            parameters += _parameters(name, operation, names, tag)
    if parameters:
        yield "\nIn the URL:\n\n| Route | Parameter | Type | Default | What it does |\n"
        yield "| --- | --- | --- | --- | --- |\n"
        yield from parameters
    yield "\n"


def _body(operation: Schema, document: Schema, names: Names, tag: str) -> str:
    links = []
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolved(body["schema"], document)
        kinds = [schema] if "properties" in schema else schema["anyOf"]
        links += [names.link(_resolved(kind, document), tag) for kind in kinds]
        if media_type != "application/json":
            links.append(f"as `{media_type}`")
    return " or ".join(links).replace(" or as", ", as")


def _parameters(name: str, operation: Schema, names: Names, tag: str) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "header":
            continue
        schema, is_required = parameter["schema"], parameter.get("required", False)
        meaning = _cell(parameter.get("description", ""))
        cells = (_type(schema, names, tag), _default(schema, is_required), meaning)
        yield f"| {name} | `{parameter['name']}` | {' | '.join(cells)} |\n"


def _object_section(schema: Schema, names: Names, tag: str) -> Iterator[str]:
    if "description" in schema:
        yield f"{inspect.cleandoc(schema['description'])}\n\n"
    yield "| Field | Type | Default | What it does |\n| --- | --- | --- | --- |\n"
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        meaning = _cell(field.get("description", "")) or _constant(field)
        cells = (_type(field, names, tag), _default(field, name in required), meaning)
        yield f"| `{name}` | {' | '.join(cells)} |\n"
    yield "\n"
    if without_effect := schema.get("x-without-effect"):
        shown = ", ".join(f"`{name}` ({kind})" for name, kind in without_effect.items())
        yield f"Accepted without effect: {shown}.\n\n"


def _constant(field: Schema) -> str:
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    return "Nothing else." if all("const" in kind for kind in kinds) else ""


def _refused_table(schemas: Mapping[str, Schema]) -> Iterator[str]:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for title, schema in schemas.items():
        for name, row in schema.get("x-refused", {}).items():
            accepted = ", ".join(map(_code, row["accepted"])) or "`null`"
            rows.setdefault((name, accepted, _cell(row["hint"])), []).append(link_to(title))
    yield "| Field | Of | Accepted if it is | Instead |\n| --- | --- | --- | --- |\n"
    for (name, accepted, hint), titles in sorted(rows.items()):
        yield f"| `{name}` | {', '.join(titles)} | {accepted} | {hint} |\n"
    yield "\n"


def _resolved(schema: Schema, document: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _type(schema: Schema, names: Names, tag: str) -> str:
    """The kinds of values, with their bounds, but null, which every optional field takes."""
    kinds = schema.get("anyOf") or schema.get("oneOf") or ()
    if not kinds or "properties" in schema:
        text, said = _one_type(schema, names, tag), _bounds(schema)
        return f"{text} ({said})" if said else text
    found = [_type(kind, names, tag) for kind in kinds if kind.get("type") != "null"]
    said = _bounds(schema)
    return " or ".join(dict.fromkeys(found)) + (f" ({said})" if said else "")


def _one_type(schema: Schema, names: Names, tag: str) -> str:
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_code, schema["enum"]))
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {_type(items, names, tag)}" if items else "list"
    if "properties" in schema and "title" in schema:
        return names.link(schema, tag)
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'], names, tag)}"
    return str(schema.get("type", "any"))


_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minProperties": "at least {} names",
    "maxProperties": "at most {} names",
    "pattern": "matching `{}`",
}


def _bounds(schema: Schema) -> str:
    said = [
        text.format(_short(schema[name])).replace("at least 1 items", "not empty")
        for name, text in _BOUNDS.items()
        if name in schema
    ]
    return ", ".join(said).replace("|", "\\|").replace("at least 1 characters", "not empty")


def _with_integers(value: Any) -> Any:
    """`value` with whole numbers as integers: FastAPI makes floats of some bounds."""
    if isinstance(value, dict):
        return {name: _with_integers(inner) for name, inner in value.items()}
    return [_with_integers(item) for item in value] if isinstance(value, list) else _short(value)


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _default(schema: Schema, is_required: bool) -> str:
    if is_required:
        return "needed"
    value = schema.get("default")
    # An object's defaults are told where its own fields are.
    return "" if value is None or (isinstance(value, dict) and value) else _code(value)


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _error_table() -> Iterator[str]:
    yield "## Errors\n\n"
    yield (
        'The body is OpenAI\'s `{"error": {"message", "type", "param", "code"}}`, but under '
        "`/v1/messages` Anthropic's and under `/generate` that of the peer it is from. In a stream an "
        "error is the last event before `[DONE]`. `code` may also name what is wrong with a field: "
        "`missing_field`, `invalid_value`, `invalid_json`, `wrong_task`.\n\n"
        "| Status | `type` | `code` | When |\n| --- | --- | --- | --- |\n"
    )
    for kind in sorted({*error_kinds(), HeadersTooLarge}, key=_status_and_code):
        doc = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
        code = "" if kind.code is None else f"`{kind.code}`"
        yield f"| {int(kind.status)} | `{kind.type}` | {code} | {_cell(doc)} |\n"
    yield "\n"


def _status_and_code(kind: type[ApiError]) -> tuple[int, str]:
    return kind.status, kind.code or kind.__name__


def error_kinds(kind: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    """The errors that there are besides `kind`."""
    for inner in kind.__subclasses__():
        if inner.__module__.startswith("quire.") and not inner.__name__.startswith("_"):
            yield inner
        yield from error_kinds(inner)


def _limit_table() -> Iterator[str]:
    yield "## Limits\n\nAlso under `info.x-limits` of the OpenAPI document.\n\n"
    yield "| Limit | Value | Of what |\n| --- | --: | --- |\n"
    size = ServeSettings.model_fields["max_request_bytes"]
    yield f"| `max_request_bytes` | {int(size.default)} | {_cell(size.description or '')} |\n"
    meanings = _attribute_docstrings(limits.RequestLimits)
    for name, value in dataclasses.asdict(LIMITS).items():
        yield f"| `{name}` | {_short(value)} | {_cell(meanings.get(name, ''))} |\n"


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """The strings below a class's attributes, by name."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = str(below.value.value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    wanted = page()
    if not options.check:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    is_current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted
    if not is_current:
        print("docs/api.md is old; run python tools/render_api.py")
    return int(not is_current)


if __name__ == "__main__":
    sys.exit(main())
