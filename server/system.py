"""Everything that is not generation: models, probes, version and metrics."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response

from redraft.server.describe import REFUSALS
from redraft.server.exposition import render
from redraft.server.replies import Health, Model, ModelList, Version
from redraft.server.service import Service, ServiceDep

router = APIRouter(tags=["system"])
CREATED = int(time.time())
UNAVAILABLE = 503


@router.get("/v1/models", responses=REFUSALS)
async def list_models(service: ServiceDep) -> ModelList:
    """The one model that this server serves; 503 while it is loading."""
    return ModelList(data=[_model(service)])


@router.get("/v1/models/{name:path}", responses=REFUSALS)
async def get_model(
    name: Annotated[str, Path(description="Name of the model, as `/v1/models` lists it.")], service: ServiceDep
) -> Model:
    """One model."""
    service.check_model(name)
    return _model(service)


@router.get("/health", responses={UNAVAILABLE: {"model": Health, "description": "The engine has ended."}})
async def health(service: ServiceDep, response: Response) -> Health:
    """For liveness probes: 503 only when the engine has ended, 200 also while loading and draining."""
    status = _status(service)
    response.status_code = UNAVAILABLE if status == "dead" else 200
    return Health(status=status)


@router.get("/ready", responses={UNAVAILABLE: {"model": Health, "description": "Takes no requests now."}})
async def ready(service: ServiceDep, response: Response) -> Health:
    """For readiness probes: 200 only when a request would be taken."""
    status = _status(service)
    response.status_code = 200 if status == "ok" else UNAVAILABLE
    return Health(status=status)


@router.get("/version")
async def version(service: ServiceDep) -> Version:
    """What runs here."""
    info = service.engine.info
    return Version(
        version=_installed_version(),
        system_fingerprint=info.fingerprint if info else None,
        draft=info.draft if info else None,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"example": "redraft_requests_running 1.0\n"}},
        }
    },
)
async def metrics(service: ServiceDep, request: Request) -> Response:
    """For Prometheus, in the format that it asks for."""
    text, content_type = render(service.metrics.registry, request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


def _model(service: Service) -> Model:
    return Model(id=service.settings.served_model_name, created=CREATED, max_model_len=service.ready().max_model_len)


def _status(service: Service) -> Literal["ok", "loading", "draining", "dead"]:
    if not service.engine.alive:
        return "dead"
    if service.draining:
        return "draining"
    return "ok" if service.engine.info is not None else "loading"


def _installed_version() -> str:
    try:
        return importlib.metadata.version("redraft")
    except importlib.metadata.PackageNotFoundError:
        # run from a checkout that was not installed
        return "unknown"
