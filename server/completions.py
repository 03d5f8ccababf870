"""``POST /v1/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from redraft.server.body import StrictRoute
from redraft.server.choice import Delta
from redraft.server.engine.types import EngineInfo
from redraft.server.errors import ErrorReply, invalid
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
    responses={
        "4XX": {"model": ErrorReply, "description": "The request is at fault."},
        503: {"model": ErrorReply, "description": "Loading, draining, or the engine has ended."},
    },
)
async def create_completion(body: CompletionRequest, request: Request, service: ServiceDep) -> Response:
    """Continue texts.  With `stream`, server-sent events that each hold a chunk, then `[DONE]`."""
    info = service.ready()
    service.check_model(body.model)
    prompts = [await _prompt(service, info, prompt, body) for prompt in body.prompt]
    sized = [(prompt, room(prompt, body.max_tokens, DEFAULT_MAX_TOKENS, info, "prompt")) for prompt in prompts]
    form = CompletionForm(info, body.model)
    return await respond(request, body, plan(service, info, body, form.id, sized), form, info.max_nodes)


async def _prompt(
    service: Service, info: EngineInfo, prompt: str | list[int], body: CompletionRequest
) -> tuple[int, ...]:
    """Token ids of ``prompt``, with a suffix as the model's infilling wants them."""
    special = body.add_special_tokens and not body.suffix
    if isinstance(prompt, list):
        ids = check_ids(prompt, info, "prompt")
    else:
        ids = await tokenise(service.tokenizer, prompt, info, "prompt", special_tokens=special) if prompt else ()
    if not body.suffix:
        return ids
    suffix = await tokenise(service.tokenizer, body.suffix, info, "suffix", special_tokens=False)
    between = service.tokenizer.infill(ids, suffix, special_tokens=body.add_special_tokens)
    if between is None:
        raise invalid("suffix", "This model has no tokens for infilling; leave suffix out.", "unsupported_parameter")
    return between


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
