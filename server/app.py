"""The app: puts engine, tokenizer, settings and routes together, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from redraft.server import chat, completions, system
from redraft.server.auth import ApiKeyMiddleware
from redraft.server.engine.client import EngineClient
from redraft.server.errors import install_error_handlers
from redraft.server.gauges import EngineGauges
from redraft.server.metrics import Metrics
from redraft.server.observe import Observer, Traces
from redraft.server.service import Service
from redraft.server.settings import ServerSettings
from redraft.server.text import TextTokenizer


def create_app(
    engine: EngineClient,
    tokenizer: TextTokenizer,
    settings: ServerSettings,
    registry: CollectorRegistry | None = None,
    traces: Traces | None = None,
) -> FastAPI:
    """An OpenAI-compatible app over ``engine``, which it closes when it ends.

    Metrics go to ``registry``, or to one of the app's own; requests go to ``traces``, if that is given.
    ``app.state.service`` holds what the routes share.
    """
    metrics = Metrics(registry or CollectorRegistry(), settings.served_model_name, settings.metrics_names)
    metrics.registry.register(EngineGauges(engine, metrics, settings.price_per_hour))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await engine.close()

    app = FastAPI(
        title="Redraft",
        description="OpenAI-compatible inference with speculative decoding. Parameters that are not honoured are "
        "refused with 400, unless their value asks for nothing.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = Service(engine, tokenizer, settings, metrics)
    install_error_handlers(app)
    if settings.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=settings.api_keys)
    app.add_middleware(Observer, metrics=metrics, settings=settings, traces=traces)
    for routes in (completions.router, chat.router, system.router):
        app.include_router(routes)
    return app
