"""`Origin` of an HTTP request: id, caller, arrival, and the time limit it sets itself."""

from starlette.types import Scope

from quire.server.engine import Caller, Origin
from quire.server.openai.schema import EmbeddingRequest, GenerationRequest


def caller_of(scope: Scope) -> Caller | None:
    """Who sends the request; None where no keys are asked for."""
    caller: Caller | None = scope.get("quire.caller")
    return caller


def origin_of(scope: Scope, request: GenerationRequest | EmbeddingRequest) -> Origin:
    """Of header and field, the shorter time limit counts."""
    limits = [
        seconds for seconds in (scope["quire.timeout"], request.timeout) if seconds is not None
    ]
    return Origin(
        request_id=scope["quire.request_id"],
        caller=caller_of(scope),
        arrival=scope["quire.arrival"],
        timeout=min(limits, default=None),
        trace=scope.get("quire.trace"),
    )
