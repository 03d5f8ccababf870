"""The API's description: ``/openapi.json``, and ``/docs`` to read and try it.

FastAPI's own page loads Swagger UI from another host, which fails where a server has no way out and tells that host who
looks.  fastapi-offline ships the same files in its wheel.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse

from redraft.server.describe import add_keys
from redraft.server.replies import Completion
from redraft.server.replies_chat import ChatChunk
from redraft.server.settings import ServerSettings

PAGE = "/docs"
FILES = "/docs/files"
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


def document(app: FastAPI, settings: ServerSettings) -> None:
    """Give ``app``, which was made without pages, its description, and a page that shows it."""
    app.description = DESCRIPTION
    plain = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            _add_streams(schema)
            if settings.api_keys:
                add_keys(schema, settings.guard)
        return plain()

    app.openapi = complete  # type: ignore[method-assign]

    @app.get(PAGE, include_in_schema=False)
    async def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{FILES}/swagger-ui.css",
            swagger_favicon_url=f"{FILES}/favicon.png",
        )

    app.mount(FILES, StaticFiles(packages=[("fastapi_offline", "static")]))


def _add_streams(schema: dict[str, Any]) -> None:
    """Describe what FastAPI does not see, as it is not the routes' answer to a request without ``stream``."""
    models = [(model, "serialization") for model in STREAMS.values()]
    _, found = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type]
    schema["components"]["schemas"] = found["$defs"] | schema["components"]["schemas"]
    for path, model in STREAMS.items():
        content = schema["paths"][path]["post"]["responses"]["200"]["content"]
        held = [{"$ref": REFERENCE.format(model=name)} for name in (model.__name__, "ErrorReply")]
        data = {
            "type": "string",
            "description": "A chunk or an error as JSON, or `[DONE]`.",
            "anyOf": [
                {"contentMediaType": "application/json", "contentSchema": {"anyOf": held}},
                {"const": "[DONE]"},
            ],
        }
        content["text/event-stream"] = {
            "schema": {"type": "object", "required": ["data"], "properties": {"data": data}, "description": "An event."}
        }
