"""What the OpenAPI schema says besides what FastAPI finds out by itself: errors, keys and the two forms of a reply."""

from __future__ import annotations

from typing import Any

from redraft.server.auth import OPEN_PATHS
from redraft.server.errors import ErrorReply
from redraft.server.settings import Guard

Responses = dict[int | str, dict[str, Any]]

REFUSALS: Responses = {
    "4XX": {"model": ErrorReply, "description": "The request is at fault; docs/limits.md lists the statuses."},
    503: {"model": ErrorReply, "description": "Loading, draining, full, or the engine has ended."},
}
"""Of every path that needs the engine."""
GENERATION: Responses = {
    200: {
        "description": "The reply as one object, or with `stream` as server-sent events that each hold a chunk.",
        "content": {"text/event-stream": {}},
    },
    **REFUSALS,
    500: {"model": ErrorReply, "description": "The engine failed at this request."},
    504: {"model": ErrorReply, "description": "The request took longer than the server allows."},
}
"""Of the paths that make text."""


def add_keys(schema: dict[str, Any], guard: Guard) -> None:
    """Say in ``schema`` that keys are needed, and where ``guard`` leaves it out."""
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refusal = {
        "description": "A key is needed.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}},
    }
    for path, methods in schema["paths"].items():
        if path not in OPEN_PATHS[guard]:
            for operation in methods.values():
                operation["security"] = [{"key": []}]
                operation["responses"].setdefault("401", refusal)
