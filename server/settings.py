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
    page: bool = True
    """Whether the live page is served at ``/``."""
    drain_seconds: int = 30
    """How long running requests may go on after SIGTERM."""
