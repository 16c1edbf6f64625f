"""Tool calls and results of earlier turns, as chat templates take them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from quire.config.limits import LIMITS
from quire.server.openai.body import is_deeper
from quire.server.openai.tools.dialect import Dialect
from quire.server.openai.tools.request import FunctionTool, MessageToolCall

_SHORT_ID = 9


class History:
    """Goes through a conversation's calls and results in order and collects `warnings`.

    What a client sends back may be broken, since a model wrote it: it is passed on as it is.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._calls: dict[str, tuple[str, str]] = {}
        self._num_calls = 0
        self.warnings: list[str] = []

    def calls(self, calls: Sequence[MessageToolCall], path: str) -> list[dict[str, Any]]:
        """The calls of an assistant's message."""
        rows: list[dict[str, Any]] = []
        for index, call in enumerate(calls):
            given = call.function.arguments
            arguments = self._arguments(given, f"{path}.tool_calls.{index}")
            function = {"name": call.function.name, "arguments": arguments}
            row: dict[str, Any] = {"type": "function", "function": function}
            if call.id is not None:
                row["id"] = self._known(call.id, call.function.name)
            rows.append(row)
        return rows

    def result(self, call_id: str | None, name: str | None, path: str) -> Mapping[str, str]:
        """What tells a template which call a tool's message answers."""
        known = None if call_id is None else self._calls.get(call_id)
        if known is None:
            self.warnings.append(f"{path} answers no tool call of this conversation")
        row: dict[str, str] = {}
        if call_id is not None:
            row["tool_call_id"] = self._short(call_id) if known is None else known[1]
        if name or known:
            row["name"] = name or (known[0] if known else "")
        return row

    def _arguments(self, given: str | dict[str, Any], path: str) -> Any:
        if isinstance(given, dict):
            return json.dumps(given) if self._dialect.wants_json_text else given
        try:
            # Those that take no arguments are often sent as an empty string.
            value = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or is_deeper(value, LIMITS.json_depth):
            self.warnings.append(f"{path}.function.arguments is no JSON object")
            format_ = self._dialect.tools
            is_listed = format_ is not None and format_.family == "xml"
            return {"arguments": given} if is_listed else given
        return given if self._dialect.wants_json_text and given.strip() else _encodable(value)

    def _known(self, given: str, name: str) -> str:
        """Remember a call; its id as the template takes it."""
        format_ = self._dialect.tools
        counts = format_ is not None and format_.counts_calls
        id = f"functions.{name}:{self._num_calls}" if counts else self._short(given)
        self._num_calls += 1
        self._calls[given] = name, id
        return id

    def _short(self, given: str) -> str:
        format_ = self._dialect.tools
        is_short = len(given) == _SHORT_ID and given.isascii() and given.isalnum()
        if format_ is None or not format_.wants_short_ids or is_short:
            return given
        return hashlib.sha256(given.encode()).hexdigest()[:_SHORT_ID]


def _encodable(value: Any) -> Any:
    """`value` with U+FFFD for halves of surrogate pairs, which a JSON text may spell and a prompt
    cannot hold."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return value


def with_tools_in_system(
    rows: Sequence[dict[str, Any]], tools: Sequence[FunctionTool]
) -> list[dict[str, Any]]:
    """The rows, with the tools as text in the system message, which is added where there is none."""
    text = json.dumps([tool.row["function"] for tool in tools], ensure_ascii=False)
    if rows and rows[0]["role"] == "system":
        return [{**rows[0], "tools": text}, *rows[1:]]
    return [{"role": "system", "content": "", "tools": text}, *rows]
