"""Reading a request's body: bounded in size and time, JSON only, and strict JSON at that.

A ``StrictRoute`` replaces FastAPI's reading of the body, because Python's own parser takes NaN and Infinity, raises
RecursionError for deep nesting, and hands lone surrogates on to code that cannot encode them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from redraft.server.errors import ApiError, clip, quote
from redraft.server.limits import BODY_SECONDS, MAX_BODY_BYTES


class StrictRequest(Request):
    """A request whose body is strict JSON of bounded size."""

    async def body(self) -> bytes:
        """The whole body; 408 when it takes too long, 413 when it is too large, 415 when it is not plain JSON."""
        if not hasattr(self, "_bounded"):
            self._require_json()
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    self._bounded = await self._read()
            except TimeoutError:
                raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:.0f} s.") from None
        return self._bounded

    async def json(self) -> Any:
        """The body parsed; 400 says where it is broken."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            # from_json names line and column and quotes nothing
            raise ApiError(400, f"The body is not valid JSON: {clip(str(error))}.", code="invalid_json") from None

    async def _read(self) -> bytes:
        declared = self.headers.get("content-length", "")
        read = bytearray()
        if not declared.isdecimal() or int(declared[:20]) <= MAX_BODY_BYTES:
            async for part in self.stream():
                read += part
                if len(read) > MAX_BODY_BYTES:
                    break
            else:
                return bytes(read)
        raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="body_too_large")

    def _require_json(self) -> None:
        kind = self.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, f"Content-Type must be application/json, not {quote(kind)}.", code="unsupported_type")
        encoding = self.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise ApiError(415, f"Content-Encoding {quote(encoding)} is not supported.", code="unsupported_encoding")


class StrictRoute(APIRoute):
    """A route that reads its body as ``StrictRequest`` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a ``StrictRequest``."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict
