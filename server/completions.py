"""``POST /v1/completions``."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from redraft.server.body import StrictRoute
from redraft.server.choice import Delta
from redraft.server.describe import GENERATION
from redraft.server.echo import Echo
from redraft.server.engine.types import EngineInfo
from redraft.server.errors import invalid
from redraft.server.intake import check_ids, plan, room, tokenise
from redraft.server.replies import Completion, CompletionChoice
from redraft.server.reply_logprobs import TokenBytes, completion_logprobs, prompt_logprobs
from redraft.server.respond import respond
from redraft.server.schemas import CompletionRequest
from redraft.server.service import Service, ServiceDep
from redraft.server.structured import enforced
from redraft.server.text import TextTokenizer

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
    async with service.admission.preparing(info.max_num_seqs) as since:
        suffix = await _suffix(service, info, body)
        prompts = [await _prompt(service, info, prompt, body, suffix) for prompt in body.prompt]
        sized = [(prompt, room(prompt, body.max_tokens, DEFAULT_MAX_TOKENS, info, "prompt")) for prompt in prompts]
        grammar = await enforced(body)
        if body.echo:
            echoes = await asyncio.to_thread(_echoes, body, prompts, service.tokenizer)
        else:
            echoes = [Echo(prompt) for prompt in prompts]
    form = CompletionForm(info, body, echoes, service.tokenizer.token_bytes)
    generation = plan(service, info, body, form.id, sized, since, grammar)
    return await respond(request, body, generation, form, info.max_nodes)


async def _suffix(service: Service, info: EngineInfo, body: CompletionRequest) -> tuple[int, ...]:
    """Token ids of the suffix, () without one; 400 when the model was not taught to write what comes before it."""
    if not body.suffix:
        return ()
    if not service.tokenizer.infills:
        raise invalid("suffix", "This model has no tokens for infilling; leave suffix out.", "unsupported_parameter")
    return await tokenise(service.tokenizer, body.suffix, info, "suffix", special_tokens=False)


async def _prompt(
    service: Service, info: EngineInfo, prompt: str | list[int], body: CompletionRequest, suffix: tuple[int, ...]
) -> tuple[int, ...]:
    """Token ids of ``prompt``, with a suffix as the model's infilling wants them."""
    special = body.add_special_tokens and not body.suffix
    if isinstance(prompt, list):
        ids = check_ids(prompt, info, "prompt")
    else:
        ids = await tokenise(service.tokenizer, prompt, info, "prompt", special_tokens=special) if prompt else ()
    return service.tokenizer.infill(ids, suffix, special_tokens=body.add_special_tokens) if body.suffix else ids


def _echoes(body: CompletionRequest, prompts: Sequence[tuple[int, ...]], tokenizer: TextTokenizer) -> list[Echo]:
    sent: Sequence[str | list[int]] = body.prompt
    whole = tokenizer.showing(None)
    around = tokenizer.encode("", special_tokens=body.add_special_tokens)
    shown = tokenizer if body.skip_special_tokens else whole
    return [
        Echo.of_text(text, ids, whole, around) if isinstance(text, str) else Echo.of_ids(ids, shown)
        for text, ids in zip(sent, prompts, strict=True)
    ]


class CompletionForm:
    """A completion's chunks and whole reply."""

    def __init__(self, info: EngineInfo, body: CompletionRequest, echoes: Sequence[Echo], read: TokenBytes) -> None:
        """``echoes``: the prompts, each for its ``n`` choices; ``read`` gives tokens' bytes."""
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._fingerprint = info.fingerprint
        self._body = body
        self._echoes = echoes
        self._read = read
        self._begun: set[int] = set()
        """Choices that were shown something of."""

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
            model=self._body.model,
            system_fingerprint=self._fingerprint,
            choices=[self._choice(delta) for delta in deltas],
        )

    def _choice(self, delta: Delta) -> CompletionChoice:
        """What is new of a choice; with its first delta the prompt, if that is to be repeated."""
        body, echo = self._body, self._echoes[delta.index // self._body.n]
        text, scored = delta.text, list(delta.scored)
        is_first = delta.index not in self._begun
        self._begun.add(delta.index)
        if body.echo:
            scored = echo.before(scored)
            if is_first:
                text = echo.text + text
                scored = [*(() if body.tops is None else echo.scored(delta.prompt, body.tops)), *scored]
        told = None
        if body.prompt_logprobs is not None:
            told = prompt_logprobs(echo.ids, delta.prompt, body.prompt_logprobs, self._read)
        return CompletionChoice(
            index=delta.index,
            text=text,
            logprobs=None if body.tops is None or not scored else completion_logprobs(scored, self._read),
            prompt_logprobs=told,
            finish_reason=delta.finish_reason,
        )
