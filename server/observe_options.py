"""Options of ``redraft serve`` about what the operator sees: metrics, logs and traces."""

from __future__ import annotations

from typing import Annotated

import typer

from redraft.server.options import finite
from redraft.server.settings import LogFormat, Names

MetricsNames = Annotated[
    Names,
    typer.Option(
        envvar="REDRAFT_METRICS_NAMES",
        help="Whose names metrics have: redraft's own, those that vLLM uses for the same, or both.",
    ),
]
PricePerHour = Annotated[
    float | None,
    typer.Option(
        envvar="REDRAFT_PRICE_PER_HOUR",
        min=0.0,
        callback=finite,
        help="What this server costs in an hour, in any currency; metrics then show the cost of a million tokens.",
    ),
]
LogForm = Annotated[
    LogFormat | None,
    typer.Option(
        envvar="REDRAFT_LOG_FORMAT", help="Log as text or as JSON; by default text in a terminal and JSON elsewhere."
    ),
]
LogPrompts = Annotated[
    bool,
    typer.Option(
        "--log-prompts",
        envvar="REDRAFT_LOG_PROMPTS",
        help="Put prompts into the log; otherwise nothing of what is asked or answered gets there.",
    ),
]
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(
        envvar="REDRAFT_OTLP_ENDPOINT",
        help="Send a trace of each request to this OpenTelemetry collector (OTLP over HTTP), such as "
        "http://localhost:4318; needs the packages of redraft[otel].",
    ),
]
