"""What the operator chose for the HTTP side; the CLI builds it, tests build it by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Names = Literal["redraft", "vllm", "both"]
LogFormat = Literal["text", "json"]


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
    drain_seconds: int = 30
    """How long running requests may go on after SIGTERM."""
    metrics_names: Names = "both"
    """Whose names metrics have."""
    price_per_hour: float | None = None
    """What the server costs in an hour, in whatever currency; None: no costs are shown."""
    log_format: LogFormat | None = None
    """None: text in a terminal, JSON elsewhere."""
    log_prompts: bool = False
    """Whether a request's line in the log has its prompt."""
    otlp_endpoint: str | None = None
    """Where traces go; None: there are none."""
