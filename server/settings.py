"""What the operator chose for the HTTP side; the CLI builds it, tests build it by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Guard = Literal["none", "metrics", "all"]
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
    guard: Guard = "none"
    """Which of the open paths want a key too: ``metrics`` adds /metrics and /version, ``all`` the probes besides."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the server from a browser; ``*`` is every one."""
    max_queue: int = 256
    """Choices that may wait for one of the engine's slots."""
    request_timeout: float | None = None
    """Seconds that a request may take from when its body is there, waiting included; None sets no end."""
    drain_seconds: float = 25.0
    """How long running requests may go on after SIGTERM."""
    tool_parser: str = "auto"
    """How the model writes tool calls: ``auto`` by its chat template, ``none``, or a name in output/formats.py."""
    reasoning_parser: str = "auto"
    """How it marks its reasoning, likewise."""
    page: bool = True
    """Whether the live page is served at ``/``."""
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
