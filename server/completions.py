"""``POST /v1/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from redraft.server.body import StrictRoute
from redraft.server.choice import Delta
from redraft.server.describe import GENERATION
from redraft.server.engine.types import EngineInfo
from redraft.server.intake import check_ids, plan, room, tokenise
from redraft.server.replies import Completion, CompletionChoice
from redraft.server.respond import respond
from redraft.server.schemas import CompletionRequest
from redraft.server.service import Service, ServiceDep

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses=GENERATION,
)
async def create_completion(body: CompletionRequest, request: Request, service: ServiceDep) -> Response:
    """Continue texts.  With `stream`, server-sent events that each hold a chunk, then `[DONE]`."""
    info = service.ready()
    service.check_model(body.model)
    service.check_room(info)
    prompts = [await _prompt(service, info, prompt) for prompt in body.prompt]
    sized = [(prompt, room(prompt, body.max_tokens, DEFAULT_MAX_TOKENS, info, "prompt")) for prompt in prompts]
    form = CompletionForm(info, body.model)
    return await respond(request, body, plan(service, info, body, form.id, sized), form, info.max_nodes)


async def _prompt(service: Service, info: EngineInfo, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return await tokenise(service.tokenizer, prompt, info, "prompt", special_tokens=True) if prompt else ()
    return check_ids(prompt, info, "prompt")


class CompletionForm:
    """A completion's chunks and whole reply."""

    def __init__(self, info: EngineInfo, model: str) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = info.fingerprint

    def chunks(self, delta: Delta) -> Sequence[Completion]:
        """One chunk, with or without the finish."""
        return (self._reply([delta]),)

    def usage_chunk(self) -> Completion:
        """No choices."""
        return self._reply(())

    def whole(self, deltas: Sequence[Delta]) -> Completion:
        """All choices."""
        return self._reply(deltas)

    def _reply(self, deltas: Sequence[Delta]) -> Completion:
        return Completion(
            id=self.id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=[
                CompletionChoice(index=delta.index, text=delta.text, finish_reason=delta.finish_reason)
                for delta in deltas
            ],
        )
