"""The app: puts engine, tokenizer, settings and routes together, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from redraft.server import chat, completions, live_page, system, tokens
from redraft.server.admission import Admission
from redraft.server.auth import ApiKeyMiddleware
from redraft.server.documentation import document
from redraft.server.engine.client import EngineClient
from redraft.server.errors import install_error_handlers
from redraft.server.gauges import EngineGauges
from redraft.server.head import HeaderLimits
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
    metrics = Metrics(
        registry or CollectorRegistry(), settings.served_model_name, settings.metrics_names, lambda: engine.info
    )
    metrics.registry.register(EngineGauges(engine, metrics, settings.price_per_hour))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.read_template()
        try:
            yield
        finally:
            if service.templates is not None:
                await service.templates.close()
            await engine.close()

    service = Service(engine, tokenizer, settings, metrics, Admission(metrics, settings))
    app = FastAPI(title="Redraft", lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None)
    document(app, settings)
    app.state.service = service
    install_error_handlers(app)
    if settings.api_keys:
        shown = frozenset(live_page.PATHS) if settings.page else frozenset()
        app.add_middleware(ApiKeyMiddleware, keys=settings.api_keys, guard=settings.guard, shown=shown)
    if settings.cors_origins:
        # outside the keys: a browser asks without one whether it may ask, and has to be able to read a 401
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After", "X-Request-Id"),
        )
    app.add_middleware(HeaderLimits)
    # outside everything: what is refused has an id, a line and a count too
    app.add_middleware(Observer, metrics=metrics, settings=settings, traces=traces)
    for routes in (completions.router, chat.router, tokens.router, system.router):
        app.include_router(routes)
    if settings.page:
        live_page.add_page(app)
    return app
