"""Requests made of an OpenAPI document by schemathesis, and whether the replies keep to it."""

from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CHECKS = {
    POSITIVE: [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
}
CHECKS[NEGATIVE] = [*CHECKS[POSITIVE], checks.negative_data_rejection]
_IDS = ("prompt", "input", "tokens", "stop_token_ids", "allowed_token_ids", "input_ids")
_COMPANIONS = (("stream_options", "stream"), ("top_logprobs", "logprobs"), ("tool_choice", "tools"))


def exercise(
    document: Mapping[str, Any],
    url: str,
    mode: GenerationMode,
    *,
    model: str,
    num_examples: int,
    only: Collection[str] = (),
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Counter[int]]:
    """How often each operation ("POST /tokenize") answered with which status.

    `num_examples` of each operation are sent, the same ones every time; `only` names some paths, `fields` are in every allowed body.
    An operation without parameters has no data that it does not allow, so nothing is counted then.

    Raises:
        FailureGroup: a reply was not what the document says; it has the command to repeat it.
    """
    schema = schemathesis.openapi.from_dict(dict(document))
    if mode is POSITIVE:
        schema.hook("map_body")(lambda context, body: _feasible(body, model, fields))
        schema.hook("map_path_parameters")(lambda context, names: _existing(names, model))
    operations = [result.ok() for result in schema.get_all_operations()]
    return {
        operation.label: _send(operation, url, mode, num_examples)
        for operation in operations
        if not only or operation.path in only
    }


def _send(operation: APIOperation, url: str, mode: GenerationMode, num: int) -> Counter[int]:
    statuses = Counter[int]()

    @seed(20)
    @settings(
        max_examples=num,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Case) -> None:
        if mode is POSITIVE:
            case.headers.pop("x-request-timeout", None)
        reply = case.call(base_url=url, timeout=60)
        statuses[reply.status_code] += 1
        # A body may be too large before it is wrong.
        kind = POSITIVE if reply.status_code == 413 else mode
        case.validate_response(reply, checks=CHECKS[kind])

    try:
        send()
    except Unsatisfiable:
        assert mode is NEGATIVE and not statuses and not operation.body
    return statuses


def _feasible(body: Any, model: str, forced: Mapping[str, Any]) -> Any:
    """A body with what no document can tell: the model's name and vocabulary, which fields need
    another, and time enough."""
    if not isinstance(body, dict):
        return body
    fields = {name: value for name, value in body.items() if name != "timeout"} | {**forced}
    if "model" in fields:
        fields["model"] = model
    for name in _IDS:
        if name in fields:
            fields[name] = _in_vocabulary(fields[name])
    if isinstance(bias := fields.get("logit_bias"), dict):
        fields["logit_bias"] = {str(int(token) % 250): value for token, value in bias.items()}
    for name, other in _COMPANIONS:
        if not fields.get(other):
            fields.pop(name, None)
    if isinstance(fields.get("dimensions"), int | float):
        fields["dimensions"] = 3
    return fields


def _in_vocabulary(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_vocabulary(item) for item in value]
    return value % 250 if isinstance(value, int | float) else value


def _existing(names: Any, model: str) -> Any:
    return {**names, "model_id": model} if names and "model_id" in names else names


def operations(document: Mapping[str, Any]) -> set[str]:
    """The names of a document's operations."""
    return {f"{method.upper()} {path}" for path, ops in document["paths"].items() for method in ops}


def streaming(document: Mapping[str, Any]) -> set[str]:
    """The paths with an operation that may reply with an event stream."""
    return {
        path
        for path, ops in document["paths"].items()
        for operation in ops.values()
        if "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    }


def has_input(document: Mapping[str, Any]) -> set[str]:
    """The operations that take a body."""
    return {
        f"{method.upper()} {path}"
        for path, ops in document["paths"].items()
        for method, operation in ops.items()
        if "requestBody" in operation
    }
