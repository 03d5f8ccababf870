"""Errors in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``, whatever went wrong.

Messages are bounded and quote the request through ``quote`` only, so that an error never grows with what was sent and
never repeats control characters.
"""

from __future__ import annotations

import http
from collections.abc import Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from redraft.server.limits import MAX_MESSAGE_CHARS, MAX_QUOTE_CHARS, RETRY_AFTER_SECONDS
from redraft.server.refuse import refusal

REQUEST_ID = "x-request-id"
"""Header, and key of a request's scope, with the request's id (observe.py)."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="For people.")
    type: str = Field(description="Class of the error, e.g. `invalid_request_error`.")
    param: str | None = Field(description="The parameter at fault, if one is.")
    code: str | None = Field(description="For programs, e.g. `model_not_found`.")


class ErrorReply(BaseModel):
    """Body of every reply that is not a success."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "message": "'max_tokens': Input should be greater than or equal to 1",
                    "type": "invalid_request_error",
                    "param": "max_tokens",
                    "code": "invalid_value",
                }
            }
        }
    )

    error: ErrorDetail = Field(description="Everything about the error.")


class ApiError(HTTPException):
    """An error with everything that OpenAI's body wants; raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, clip(message, MAX_MESSAGE_CHARS), headers)
        self.param = param
        self.code = code

    @property
    def reply(self) -> ErrorReply:
        """The body to send."""
        return _reply(self.status_code, str(self.detail), self.param, self.code)


def kind(name: str) -> str:
    """A schema's tag for one of several kinds of a value: pydantic's paths have it, errors do not tell it."""
    return f"({name})"


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A 400 about one parameter."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> ApiError:
    """A 503 that is worth another try."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def internal_error() -> ApiError:
    """A 500 that tells the client nothing of the cause."""
    return ApiError(500, "The server failed; its log has the cause.", code="internal_error")


def clip(text: str, limit: int = MAX_QUOTE_CHARS) -> str:
    """``text`` cut to ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quote(value: str) -> str:
    """``value`` made safe to appear in a message: short, printable, in quotes."""
    return ascii(clip(value))


def install_error_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error in OpenAI's form."""
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


async def _validation_error(request: Request, error: Exception) -> Response:
    first = cast("RequestValidationError", error).errors()[0]
    return error_response(_from_pydantic(first))


async def _http_error(request: Request, error: Exception) -> Response:
    error = cast("HTTPException", error)
    if isinstance(error, ApiError):
        return error_response(error)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    message = {
        404: f"There is nothing at {quote(request.url.path)}.",
        405: f"{quote(request.method)} is not allowed at {quote(request.url.path)}.",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return error_response(ApiError(error.status_code, message, code=code, headers=headers))


async def _internal_error(request: Request, error: Exception) -> Response:
    reply = error_response(internal_error())
    if REQUEST_ID in request.scope:
        reply.headers[REQUEST_ID] = request.scope[REQUEST_ID]
    return reply


def error_response(error: ApiError) -> Response:
    """``error`` as a JSON response."""
    return JSONResponse(error.reply.model_dump(), error.status_code, headers=error.headers)


def _reply(status: int, message: str, param: str | None, code: str | None) -> ErrorReply:
    if status == http.HTTPStatus.UNAUTHORIZED:
        kind = "authentication_error"
    elif status < 500:
        kind = "invalid_request_error"
    elif status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        kind = "service_unavailable_error"
    else:
        kind = "server_error"
    return ErrorReply(error=ErrorDetail(message=message, type=kind, param=param, code=code))


def _from_pydantic(detail: dict[str, Any]) -> ApiError:
    """The first of pydantic's complaints as a 400."""
    is_extra, named = detail["type"] == "extra_forbidden", detail["loc"][1:]
    # a name that the client made up comes last, and is told whatever it looks like
    own: Sequence[str | int] = named[-1:] if is_extra else ()
    path = [*(part for part in named[: len(named) - len(own)] if not _is_kind(part)), *own]
    # what two parameters disagree about has no place of its own in the body
    within = detail.get("ctx", {}).get("param")
    param = clip(_dotted([*path, within] if within else path)) or None
    if detail["type"] == "missing":
        where = f"'{param}'" if param else "A JSON body"
        return invalid(param, f"{where} is required.", "missing_required_parameter")
    if is_extra:
        code = "unsupported_parameter" if len(path) == 1 else "unknown_parameter"
        return invalid(param, refusal(quote(_dotted(path)), str(path[-1])), code)
    message = str(detail["msg"]).removeprefix("Value error, ")
    return invalid(param, f"{f'{quote(param)}: ' if param else ''}{message}", "invalid_value")


def _is_kind(part: str | int) -> bool:
    return isinstance(part, str) and part == kind(part[1:-1])


def _dotted(path: Sequence[str | int]) -> str:
    """``("messages", 0, "content")`` as ``messages[0].content``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
