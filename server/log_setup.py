"""Where logs go and what they look like."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from redraft.server.settings import LogFormat


def log_to_stderr(form: LogFormat | None) -> None:
    """Logs for people or one JSON object a line, by default as stderr is a terminal or not; stdout stays free."""
    is_terminal = sys.stderr.isatty()
    form = form or ("text" if is_terminal else "json")
    renderer: Processor = structlog.processors.JSONRenderer()
    if form == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=is_terminal)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
