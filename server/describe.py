"""What the OpenAPI schema says besides what FastAPI finds out by itself: streams, errors, nulls and keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from redraft.server.auth import OPEN_PATHS
from redraft.server.errors import ErrorReply
from redraft.server.settings import ServerSettings

Responses = dict[int | str, dict[str, Any]]

EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chunk or an error as JSON, or `[DONE]`."}},
}
"""Of a stream."""
REFUSALS: Responses = {
    "4XX": {"model": ErrorReply, "description": "The request is at fault; docs/limits.md lists the statuses."},
    503: {"model": ErrorReply, "description": "Loading, draining, full, or the engine has ended."},
}
"""Of every path that needs the engine."""
GENERATION: Responses = {
    200: {
        "description": "The reply as one object, or with `stream` as server-sent events that each hold a chunk.",
        "content": {"text/event-stream": {"schema": EVENT}},
    },
    **REFUSALS,
    500: {"model": ErrorReply, "description": "The engine failed at this request."},
    504: {"model": ErrorReply, "description": "The request took longer than the server allows."},
}
"""Of the paths that make text."""
NULLABLE = ("CompletionRequest", "ChatRequest", "Message", "Speculation")
"""Objects of a request in which null is as good as leaving a field out."""


class DescribedApp(FastAPI):
    """An app whose schema is complete."""

    def __init__(self, settings: ServerSettings, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings

    def openapi(self) -> dict[str, Any]:
        """The schema, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for name in NULLABLE:
                _allow_nulls(schema["components"]["schemas"][name])
            if self._settings.api_keys:
                self._add_keys(schema)
        return super().openapi()

    def _add_keys(self, schema: dict[str, Any]) -> None:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        refusal = {
            "description": "A key is needed.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}},
        }
        for path, methods in schema["paths"].items():
            if path not in OPEN_PATHS[self._settings.guard]:
                for operation in methods.values():
                    operation["security"] = [{"key": []}]
                    operation["responses"].setdefault("401", refusal)


def _allow_nulls(described: dict[str, Any]) -> None:
    for name, field in described["properties"].items():
        if name in described.get("required", ()):
            continue
        kinds = field.get("anyOf")
        if kinds is not None:
            if {"type": "null"} not in kinds:
                kinds.append({"type": "null"})
            continue
        # what says the same of any type stays where it is
        about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        kind = dict(field)
        field.clear()
        field.update(anyOf=[kind, {"type": "null"}], **about)
