"""Bounds on a request's head, line and headers together, checked before anything of it is looked at."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from redraft.server.errors import ApiError, error_response
from redraft.server.limits import MAX_HEAD_BYTES, MAX_HEADERS

FIELDS_TOO_LARGE = 431


class HeaderLimits:
    """Answers 431 to requests whose head is too large; pure ASGI.

    The parser holds no more than this of a head that is incomplete, but it passes on whatever came whole.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _too_large(scope):
            await error_response(head_too_large())(scope, receive, send)
            return
        await self.app(scope, receive, send)


def head_too_large() -> ApiError:
    """What to answer."""
    return ApiError(
        FIELDS_TOO_LARGE,
        f"The request's head is larger than {MAX_HEAD_BYTES} bytes or has more than {MAX_HEADERS} headers.",
        code="headers_too_large",
        headers={"Connection": "close"},
    )


def _too_large(scope: Scope) -> bool:
    headers = scope["headers"]
    line = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
    return len(headers) > MAX_HEADERS or line + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES
