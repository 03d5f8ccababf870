"""What the routes share: engine, tokenizer, settings, metrics and whether the server is on its way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from redraft.server.admission import Admission
from redraft.server.engine.client import EngineClient
from redraft.server.engine.types import EngineInfo
from redraft.server.errors import ApiError, clip, quote, unavailable
from redraft.server.metrics import Metrics
from redraft.server.output.formats import OutputFormats
from redraft.server.settings import ServerSettings
from redraft.server.template_process import TemplateProcess
from redraft.server.text import TextTokenizer


@dataclass(slots=True)
class Service:
    """One per app, at ``app.state.service``."""

    engine: EngineClient
    tokenizer: TextTokenizer
    settings: ServerSettings
    metrics: Metrics
    admission: Admission
    formats: OutputFormats = field(default_factory=OutputFormats)
    """How the model writes what is more than text; set with ``templates`` when the app starts."""
    templates: TemplateProcess | None = None
    """None when the model has no chat template."""
    draining: bool = False
    """Set once the server was told to stop: it finishes what it has and takes nothing new."""

    def read_template(self) -> None:
        """Look at the model's chat template."""
        template = self.tokenizer.chat_template
        if template is not None:
            self.formats = OutputFormats.of(template.source, self.settings.reasoning_parser, self.settings.tool_parser)
            self.templates = TemplateProcess(template)

    def ready(self) -> EngineInfo:
        """The engine's description; 503 when it cannot take a request."""
        if not self.engine.alive:
            raise unavailable("The engine has ended; the server must be restarted.", "engine_dead")
        if self.draining:
            raise unavailable("The server is shutting down.", "draining")
        if self.engine.info is None:
            raise unavailable("The model is still loading.", "loading")
        return self.engine.info

    def check_model(self, name: str) -> None:
        """404 unless ``name`` is the model served here."""
        served = self.settings.served_model_name
        if name != served:
            message = f"There is no model {quote(name)} here; this server has '{clip(served)}'."
            raise ApiError(404, message, param="model", code="model_not_found")


def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


ServiceDep = Annotated[Service, Depends(_service)]
