"""Options of ``redraft serve`` about HTTP: who may ask, how much at once, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from redraft.server.options import finite
from redraft.server.settings import Guard


def origins(values: list[str] | None) -> list[str] | None:
    """``values``, each ``*`` or what a browser sends as ``Origin``."""
    for value in values or ():
        parts = urlsplit(value)
        if value != "*" and not (parts.netloc and value == f"{parts.scheme}://{parts.netloc}".lower()):
            raise typer.BadParameter(f"{value[:80]!r} is no origin such as https://example.org, nor *.")
    return values


Host = Annotated[str, typer.Option(envvar="REDRAFT_HOST", help="Address to listen on; 0.0.0.0 is every one.")]
Port = Annotated[
    int, typer.Option(envvar="REDRAFT_PORT", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
]
ServedName = Annotated[
    str | None,
    typer.Option(
        envvar="REDRAFT_SERVED_MODEL_NAME", help="Name of the model towards clients; by default the target's."
    ),
]
Page = Annotated[
    bool, typer.Option(envvar="REDRAFT_PAGE", help="Serve a page at / that shows the rounds as they come.")
]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        envvar="REDRAFT_API_KEY",
        help="Key that clients must send as a bearer token; repeat it (in the variable: separate by spaces) for "
        "several. Without one, nobody is asked for a key.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        envvar="REDRAFT_API_KEY_FILE",
        help="File with keys, one a line, read once at the start; besides those of --api-key.",
    ),
]
Guarded = Annotated[
    Guard,
    typer.Option(
        envvar="REDRAFT_GUARD",
        help="What wants a key beside the API itself: metrics is /metrics and /version, all is /health and /ready too.",
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        envvar="REDRAFT_CORS_ORIGIN",
        callback=origins,
        help="Origin whose web pages may call the server from a browser, such as https://example.org, or * for every "
        "one; repeat it (in the variable: separate by spaces) for several. By default none.",
    ),
]
MaxQueue = Annotated[
    int,
    typer.Option(
        envvar="REDRAFT_MAX_QUEUE",
        min=0,
        help="Requests that may wait, each choice counted, beyond the --max-num-seqs decoded at once; more get status "
        "503.",
    ),
]
RequestTimeout = Annotated[
    float | None,
    typer.Option(
        envvar="REDRAFT_REQUEST_TIMEOUT",
        min=0.001,
        callback=finite,
        help="Seconds that a request may take, waiting included; then it is cancelled and gets status 504. By default "
        "without end.",
    ),
]
DrainSeconds = Annotated[
    float,
    typer.Option(
        envvar="REDRAFT_DRAIN_SECONDS",
        min=0.0,
        callback=finite,
        help="Seconds that running requests may go on after SIGTERM or Ctrl-C; a second signal stops at once.",
    ),
]
