"""API keys: pure ASGI, so that streams pass through untouched.

Probes and metrics stay open unless they are guarded, for they carry no content; everything else wants
``Authorization: Bearer <key>``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from redraft.server.errors import ApiError, error_response
from redraft.server.limits import MAX_KEY_BYTES
from redraft.server.settings import Guard

PROBES = frozenset({"/health", "/ready"})
OPEN_PATHS: dict[Guard, frozenset[str]] = {
    "none": PROBES | {"/version", "/metrics"},
    "metrics": PROBES,
    "all": frozenset(),
}


class ApiKeyMiddleware:
    """Answers 401 to requests that carry none of ``keys``."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], guard: Guard) -> None:
        self.app = app
        self._open = OPEN_PATHS[guard]
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or self._allowed(scope):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "A valid API key is needed: send it as 'Authorization: Bearer <key>'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(error)(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        if scheme.lower() != b"bearer" or len(key) > MAX_KEY_BYTES:
            return False
        digest = _digest(key)
        # summed, so that every key is compared whichever matches
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _digest(key: bytes) -> bytes:
    """Hashed, so that comparing takes the same time whatever the key's length."""
    return hashlib.sha256(key).digest()
