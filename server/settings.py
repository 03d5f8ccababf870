"""What the operator chose for the HTTP side; the CLI builds it, tests build it by hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of one server process."""

    served_model_name: str
    """The only value that a request's ``model`` may have."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free port."""
    api_keys: tuple[str, ...] = ()
    """Empty: no key is asked for."""
    tool_parser: str = "auto"
    """How the model writes tool calls: ``auto`` by its chat template, ``none``, or a name in output/formats.py."""
    reasoning_parser: str = "auto"
    """How it marks its reasoning, likewise."""
    drain_seconds: int = 30
    """How long running requests may go on after SIGTERM."""
