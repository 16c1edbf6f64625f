"""API keys: read from a file and the environment, kept as SHA-256 digests, asked of every path that
is not a probe.

The decision rests on the raw ASGI path and is deny by default: a route that nobody thought of is
closed (vLLM's prefix list left root aliases open; CVE-2026-48746 rewrote the path by Host header).
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.config.api_keys_env import api_keys_of_environment
from quire.config.errors import ConfigError
from quire.config.settings import ServeSettings
from quire.server.engine import Caller
from quire.server.errors import Unauthorized
from quire.server.logs import request_details

PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ping"})
"""Probes carry no key: kubelets and load balancers have none. They tell phases, nothing else."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One line of a key file: `key` or `name:key`."""

    name: str | None
    text: str


class ApiKeys:
    """The accepted keys, by digest; none: everyone is let in.

    `read` gives the keys of now; it is asked at construction and at each `reload`.
    """

    def __init__(self, read: Callable[[], Mapping[bytes, Caller]]) -> None:
        self._read = read
        self._callers = read()

    def __len__(self) -> int:
        return len(self._callers)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._callers)

    def reload(self) -> None:
        """Take over the keys of now. Requests that were let in go on.

        Raises:
            ConfigError: they cannot be read, or all are gone; those of before stay.
        """
        found = self._read()
        if self._callers and not found:
            raise ConfigError("no API key is left")
        self._callers = found

    def find(self, key: str) -> Caller | None:
        """Who shows `key`, a header's value; None for a stranger."""
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        # Not short-circuited: every key is compared, so time does not tell which matched.
        same = [
            caller for known, caller in self._callers.items() if hmac.compare_digest(digest, known)
        ]
        return same[0] if same else None


def load_api_keys(settings: ServeSettings) -> ApiKeys:
    """The keys of `settings.api_key_file`, QUIRE_API_KEY and QUIRE_API_KEYS.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a key is not one.
    """

    def read() -> Mapping[bytes, Caller]:
        found = [_parsed(key, where) for where, key in api_keys_of_environment()]
        if settings.api_key_file is not None:
            found += read_key_file(settings.api_key_file)
        return _by_digest(found)

    return ApiKeys(read)


def load_admin_keys(settings: ServeSettings, api_keys: ApiKeys) -> ApiKeys:
    """The keys of `settings.admin_key_file`, or those of the API where there is none.

    Raises:
        ConfigError: as `load_api_keys`.
    """
    path = settings.admin_key_file
    if path is None:
        return api_keys
    return ApiKeys(lambda: _by_digest(read_key_file(path, "admin_key_file")))


def read_key_file(path: Path, option: str = "api_key_file") -> list[ApiKey]:
    """One key per line, or `name:key`; blank lines and # comments are skipped.

    Raises:
        ConfigError: it cannot be read, holds no key, or a key that no header can carry.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error.strerror}") from None
    keys = []
    for number, line in enumerate(lines, start=1):
        text = line.strip().decode("latin-1")
        if text and not text.startswith("#"):
            keys.append(_parsed(text, f"{option}: {path} line {number}"))
    if not keys:
        raise ConfigError(f"{option}: {path} holds no key")
    return keys


def _parsed(text: str, where: str) -> ApiKey:
    # Neither name nor key is shown: a line that went wrong may be all key.
    if not all("!" <= character <= "~" for character in text):
        raise ConfigError(f"{where}: a key is printable ASCII without spaces")
    name, colon, key = text.partition(":")
    if not colon:
        return ApiKey(None, text)
    if not key or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: before a colon stands the key's name (letters, digits, . _ -, at most 64), "
            "after it the key"
        )
    return ApiKey(name, key)


def _by_digest(keys: list[ApiKey]) -> Mapping[bytes, Caller]:
    found: dict[bytes, Caller] = {}
    for key in keys:
        digest = hashlib.sha256(key.text.encode("latin-1")).digest()
        caller = Caller(key.name or digest.hex(), key.name)
        if found.setdefault(digest, caller) != caller:
            raise ConfigError(
                f"API keys: one key has two names, {found[digest].name} and {key.name}"
            )
    return found


class AuthMiddleware:
    """Raises Unauthorized, before the body is read, unless a request shows one of `keys`.

    `scope["quire.caller"]` is who it is from then on.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, public_paths: frozenset[str] = PUBLIC_PATHS
    ) -> None:
        self._app = app
        self._keys = keys
        self._public_paths = public_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keys and scope["type"] == "http" and scope["path"] not in self._public_paths:
            caller = self._caller(Headers(scope=scope))
            scope["quire.caller"] = caller
            request_details(scope).api_key = caller.name
        await self._app(scope, receive, send)

    def _caller(self, headers: Headers) -> Caller:
        presented = []
        for value in headers.getlist("authorization"):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                presented.append(token.strip())
        # Clients of Anthropic may send both, one of them meant for elsewhere: any of ours opens, and
        # where both are ours, Authorization says who it is.
        presented += headers.getlist("x-api-key")
        if not presented:
            raise Unauthorized("No API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        callers = [caller for key in presented if (caller := self._keys.find(key)) is not None]
        if not callers:
            raise Unauthorized("The API key is not valid")
        return callers[0]
