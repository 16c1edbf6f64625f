"""API keys: read from a file, kept as SHA-256 digests, asked of every path that is not a probe.

The decision rests on the raw ASGI path and is deny by default: a route that nobody thought of is
closed (vLLM's prefix list left root aliases open; CVE-2026-48746 rewrote the path by Host header).
"""

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.config.errors import ConfigError
from quire.config.settings import ServeSettings
from quire.server.errors import Unauthorized

PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ping"})
"""Probes carry no key: kubelets and load balancers have none. They tell phases, nothing else."""

ApiKeys = frozenset[bytes]
"""SHA-256 digests of the accepted keys; empty: everyone is let in."""


def load_api_keys(settings: ServeSettings) -> ApiKeys:
    """The keys of `settings.api_key_file`: one per line; blank lines and # comments are skipped.

    Raises:
        ConfigError: the file cannot be read, holds no key, or a key that no header can carry.
    """
    path = settings.api_key_file
    if path is None:
        return frozenset()
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"api_key_file: cannot read {path}: {error.strerror}") from None
    keys = set()
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if not all(0x21 <= byte <= 0x7E for byte in key):
            raise ConfigError(
                f"api_key_file: {path} line {number}: a key is printable ASCII without spaces"
            )
        keys.add(hashlib.sha256(key).digest())
    if not keys:
        raise ConfigError(f"api_key_file: {path} holds no key")
    return frozenset(keys)


class AuthMiddleware:
    """Raises Unauthorized, before the body is read, unless a request shows one of `keys`."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keys and scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            self._check(Headers(scope=scope))
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        presented = headers.getlist("x-api-key")
        for value in headers.getlist("authorization"):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                presented.append(token.strip())
        if not presented:
            raise Unauthorized("No API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        if not any(self._is_known(key) for key in presented):
            raise Unauthorized("The API key is not valid")

    def _is_known(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        # Summed, not short-circuited: every key is compared, so time does not tell which matched.
        return sum(hmac.compare_digest(digest, known) for known in self._keys) > 0
