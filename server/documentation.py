"""The API's description: ``/openapi.json``, and ``/docs`` to read and try it.

FastAPI's own page loads Swagger UI from another host, which fails where a server has no way out and tells that host who
looks.  fastapi-offline ships the same files in its wheel.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from redraft.server.describe import add_keys, allow_nulls
from redraft.server.errors import ErrorReply
from redraft.server.replies import Completion
from redraft.server.replies_chat import ChatChunk
from redraft.server.settings import ServerSettings

REFERENCE = "#/components/schemas/{model}"
STREAMS = {"/v1/completions": Completion, "/v1/chat/completions": ChatChunk}
"""What the events of each endpoint's stream hold."""
DESCRIPTION = """OpenAI-compatible inference with speculative decoding: the output never depends on the draft.

Parameters that are not honoured are refused with 400, unless their value asks for nothing. Beyond OpenAI's there are
`speculation` (how much may be drafted), `cache_salt` (who may share what was computed of a prompt), `include_metrics`
(a reply's own statistics, as `metrics`), vLLM's names for what it has, `reasoning_content`, and `/tokenize` and
`/detokenize`.

With `stream` a reply is server-sent events, each a chunk, ended by `data: [DONE]`; an error after the first byte comes
as an event, too."""


def documented_app(settings: ServerSettings, **options: Any) -> FastAPI:
    """An app with its documentation; ``options`` are FastAPI's."""
    app = FastAPIOffline(redoc_url=None, static_url="/docs/static", title="Redraft", description=DESCRIPTION, **options)
    plain = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            _add_streams(schema)
            for described in schema["components"]["schemas"].values():
                allow_nulls(described)
            if settings.api_keys:
                add_keys(schema, settings.guard)
        return plain()

    app.openapi = complete  # type: ignore[method-assign]
    return app


def _add_streams(schema: dict[str, Any]) -> None:
    """Describe what FastAPI does not see, as it is not the routes' answer to a request without ``stream``."""
    models = [(model, "serialization") for model in (*STREAMS.values(), ErrorReply)]
    _, found = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type]
    schema["components"]["schemas"] = found["$defs"] | schema["components"]["schemas"]
    for path, model in STREAMS.items():
        content = schema["paths"][path]["post"]["responses"]["200"]["content"]
        event = {
            "type": "string",
            "description": "A chunk, or an error, as JSON; at last `[DONE]`.",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": REFERENCE.format(model=model.__name__)},
        }
        kind = {"type": "object", "required": ["data"], "properties": {"data": event}}
        content["text/event-stream"] = {"schema": kind}
