"""The live page at ``/``: static files of the package, and headers that let them do no more than they need.

The page talks to the API like any other client.  Its files hold nothing secret, so they need no key; what it asks of
the API does.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.routing import Route

TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
INDEX: Final = "index.html"
HEADERS: Final = {
    # no other host, no inline script or style, no markup made of strings, no frame around it
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # asked for anew each time, so that an upgraded server never meets an old page
    "Cache-Control": "no-cache",
}


def _paths() -> dict[str, str]:
    names = (file.name for file in (files("redraft.server") / "page").iterdir() if file.is_file())
    return {"/" if name == INDEX else f"/page/{name}": name for name in names}


PATHS: Final = _paths()
"""File by path; nothing else of the package can be asked for."""


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/page/``."""
    for path in PATHS:
        app.router.routes.append(Route(path, _file, methods=["GET"], include_in_schema=False))


async def _file(request: Request) -> Response:
    name = PATHS[request.url.path]
    content = (files("redraft.server") / "page" / name).read_bytes()
    return Response(content, media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)
