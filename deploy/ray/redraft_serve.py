"""Redraft as a deployment of Ray Serve that follows its load: the same app, one engine a replica.

    serve run redraft_serve:app options="--target smollm2-135m" max_replicas=4 num_gpus=1

``options`` are those of ``redraft serve``; what Ray decides by itself (address, port, how long to drain) is refused.
"""

from __future__ import annotations

import shlex
from typing import Any

import typer
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from redraft.server import cli
from redraft.server.engine.types import RedraftError
from redraft.server.options import engine_config, on_command_line

RAYS_OWN = ("host", "port", "drain_seconds")
"""Options whose job Ray's proxy and controller do."""


class Arguments(BaseModel):
    """What ``serve run`` may be given."""

    model_config = ConfigDict(extra="forbid")
    options: str = ""
    """Options of ``redraft serve``, as in a shell."""
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    target_ongoing_requests: float = Field(default=6, gt=0)
    """Requests a replica that Ray aims at; below --max-num-seqs (8), so that nobody waits for long."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests that Ray sends to a replica at once."""
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=600, ge=0)
    """Long: the next replica would have to load its model again."""
    drain_seconds: float = Field(default=60, ge=0)
    """How long running requests may go on in a replica that is to end."""
    num_cpus: float = Field(default=1, gt=0)
    num_gpus: float = Field(default=0, ge=0)


@serve.ingress()
class Replica:
    """An engine in a process of its own, and the app over it in Ray's."""

    async def __init__(self, options: str) -> None:  # type: ignore[misc]  # Ray awaits it
        from redraft.server.engine.remote import RemoteEngine

        self._context = parse(options)
        self._config = engine_config(self._context)
        self._engine = RemoteEngine(self._config)
        # Ray sends nothing before this returns
        await self._engine.wait_ready()

    def __serve_build_asgi_app__(self) -> FastAPI:
        from dataclasses import replace
        from pathlib import Path

        from redraft.server import launch
        from redraft.server.app import create_app
        from redraft.server.text import TextTokenizer

        name = self._context.params["served_model_name"] or self._config.target_name
        settings = replace(launch.server_settings(self._context.params), served_model_name=name)
        return create_app(self._engine, TextTokenizer.from_folder(Path(self._config.target)), settings)

    async def check_health(self) -> None:
        """Ray replaces a replica whose engine has ended."""
        if not self._engine.alive:
            raise RuntimeError("the engine has ended")


def parse(options: str) -> typer.Context:
    """The options as ``redraft serve`` reads them, variables included; ``RedraftError`` for those that are Ray's."""
    group: Any = typer.main.get_command(cli.app)
    context: typer.Context = group.commands["serve"].make_context("redraft serve", shlex.split(options))
    given = [name for name in RAYS_OWN if on_command_line(context, name)]
    if given:
        raise RedraftError(f"--{given[0].replace('_', '-')} is Ray's to decide; leave it out")
    return context


def app(arguments: dict[str, str]) -> serve.Application:
    """What ``serve run`` builds; raises for arguments that it does not know."""
    given = Arguments(**arguments)  # type: ignore[arg-type]  # pydantic reads numbers out of the text
    parse(given.options)
    autoscaling = {
        "min_replicas": given.min_replicas,
        "max_replicas": given.max_replicas,
        "target_ongoing_requests": given.target_ongoing_requests,
        "upscale_delay_s": given.upscale_delay_s,
        "downscale_delay_s": given.downscale_delay_s,
    }
    deployment: Any = serve.deployment(Replica)
    deployment = deployment.options(
        name="redraft",
        autoscaling_config=autoscaling,
        max_ongoing_requests=given.max_ongoing_requests,
        graceful_shutdown_timeout_s=given.drain_seconds,
        ray_actor_options={"num_cpus": given.num_cpus, "num_gpus": given.num_gpus},
    )
    application: serve.Application = deployment.bind(given.options)
    return application
