"""Puts engine process, tokenizer and HTTP server together for ``redraft serve``, and tells the operator what runs."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.server.app import create_app
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.progress import say
from redraft.server.engine.remote import RemoteEngine
from redraft.server.engine.types import EngineInfo, RedraftError
from redraft.server.healthcheck import EVERY_ADDRESS
from redraft.server.log_setup import log_to_stderr
from redraft.server.serve import run
from redraft.server.settings import ServerSettings
from redraft.server.text import TextTokenizer

if TYPE_CHECKING:
    from redraft.server.tracing import Tracing


def check_address(host: str, port: int) -> None:
    """Refuse a port that is in use or may not be bound, before a model is fetched or loaded for nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise RedraftError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from error


def check_keys(keys: Sequence[str], file: Path | None = None) -> tuple[str, ...]:
    """The API keys given and those in ``file``, one a line; refused when there is none where some were meant.

    An unset variable or an empty file must not open or close the server by accident.
    """
    # the command line reads an empty variable as none at all
    if any(not key.strip() for key in keys) or (not keys and "REDRAFT_API_KEY" in os.environ):
        raise RedraftError("an --api-key is empty; give a key, or leave the option and REDRAFT_API_KEY out")
    if file is None:
        if "REDRAFT_API_KEY_FILE" in os.environ:
            raise RedraftError("REDRAFT_API_KEY_FILE is empty; name a file with keys, or leave it out")
        return tuple(keys)
    try:
        lines = file.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise RedraftError(f"--api-key-file {file} cannot be read: {reason}") from error
    if not lines:
        raise RedraftError(f"--api-key-file {file} has no keys; put one on a line, or leave the option out")
    return (*keys, *lines)


def server_settings(options: Mapping[str, Any]) -> ServerSettings:
    """Settings of the HTTP side, by the names of the options of ``redraft serve``; without the model's name."""
    keys = check_keys(options["api_key"] or (), options["api_key_file"])
    if options["guard"] != "none" and not keys:
        raise RedraftError(f"--guard {options['guard']} asks for keys, and there are none; give --api-key")
    named = {field.name for field in fields(ServerSettings)} - {"served_model_name"}
    taken = {name: value for name, value in options.items() if name in named}
    return ServerSettings("", api_keys=keys, cors_origins=tuple(options["cors_origin"] or ()), **taken)


def serve(config: EngineConfig, settings: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM; raises ``RedraftError`` when the engine cannot start."""
    log_to_stderr(settings.log_format)
    tracing = open_tracing(settings)
    tokenizer = TextTokenizer.from_folder(Path(config.target))
    app = create_app(RemoteEngine(config), tokenizer, settings, traces=tracing)

    def announce(info: EngineInfo, port: int) -> None:
        for note in info.notes:
            say(note)
        way = "open it in a browser, or try" if settings.page else "try"
        say(f"Serving {settings.served_model_name} on {base_url(settings.host, port)}; {way}:")
        say(example(settings, port, chat=tokenizer.chat_template is not None))

    try:
        run(app, settings, announce)
    finally:
        if tracing is not None:
            tracing.close()


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches the server."""
    reached = EVERY_ADDRESS.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def example(settings: ServerSettings, port: int, *, chat: bool) -> str:
    """A ``curl`` command that works once copied, but for the key where one is asked for."""
    question = "Explain speculative decoding in one sentence."
    prompt: dict[str, object] = {"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question}
    body = json.dumps({"model": settings.served_model_name, **prompt, "max_tokens": 64})
    path = "/v1/chat/completions" if chat else "/v1/completions"
    words = ["curl", base_url(settings.host, port) + path, "-H", "Content-Type: application/json"]
    if settings.api_keys:
        words += ["-H", "Authorization: Bearer YOUR_KEY"]
    return shlex.join([*words, "-d", body])


def open_tracing(settings: ServerSettings) -> Tracing | None:
    """Traces, if they were asked for; ``RedraftError`` where what they need is not installed."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from redraft.server.tracing import Tracing, to_endpoint
    except ImportError as error:
        raise RedraftError(
            f"--otlp-endpoint needs packages that are absent: pip install 'redraft[otel]' ({error})"
        ) from error
    return Tracing(to_endpoint(settings.otlp_endpoint), settings.served_model_name)
