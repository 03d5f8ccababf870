"""The app: puts engine, tokenizer, settings and routes together, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from redraft.server import chat, completions, system, tokens
from redraft.server.auth import ApiKeyMiddleware
from redraft.server.documentation import document
from redraft.server.engine.client import EngineClient
from redraft.server.errors import install_error_handlers
from redraft.server.gauges import EngineGauges
from redraft.server.metrics import Metrics
from redraft.server.service import Service
from redraft.server.settings import ServerSettings
from redraft.server.text import TextTokenizer


def create_app(
    engine: EngineClient,
    tokenizer: TextTokenizer,
    settings: ServerSettings,
    registry: CollectorRegistry | None = None,
) -> FastAPI:
    """An OpenAI-compatible app over ``engine``, which it closes when it ends.

    Metrics go to ``registry``, or to one of the app's own.  ``app.state.service`` holds what the routes share.
    """
    metrics = Metrics(registry or CollectorRegistry(), settings.served_model_name)
    metrics.registry.register(EngineGauges(engine, metrics))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.read_template()
        try:
            yield
        finally:
            if service.templates is not None:
                await service.templates.close()
            await engine.close()

    service = Service(engine, tokenizer, settings, metrics)
    app = FastAPI(title="Redraft", lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None)
    document(app)
    app.state.service = service
    install_error_handlers(app)
    if settings.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=settings.api_keys)
    for routes in (completions.router, chat.router, tokens.router, system.router):
        app.include_router(routes)
    return app
