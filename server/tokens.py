"""``POST /tokenize`` and ``POST /detokenize``: what the model reads, without the model."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from redraft.server.body import StrictRoute
from redraft.server.conversation import encode, known_tools, render
from redraft.server.describe import REFUSALS
from redraft.server.intake import check_ids, tokenise
from redraft.server.schema_tokens import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeConversation,
    TokenizeReply,
    TokenizeRequest,
)
from redraft.server.service import ServiceDep

router = APIRouter(route_class=StrictRoute, tags=["tokens"], responses=REFUSALS)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: ServiceDep) -> TokenizeReply:
    """The token ids of a text, or of the prompt that a conversation makes; the model's context does not bound them."""
    info = service.ready()
    if body.model is not None:
        service.check_model(body.model)
    if isinstance(body, TokenizeConversation):
        text = await render(service, body, known_tools(service, body), body.chat_template_kwargs)
        ids = await encode(service, info, body, text)
    else:
        ids = await tokenise(service.tokenizer, body.prompt, info, "prompt", special_tokens=body.add_special_tokens)
    strings = None
    if body.return_token_strs:
        strings = await asyncio.to_thread(lambda: [service.tokenizer.token(token) or "" for token in ids])
    return TokenizeReply(count=len(ids), max_model_len=info.max_model_len, tokens=list(ids), token_strs=strings)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: ServiceDep) -> DetokenizeReply:
    """The text of token ids."""
    info = service.ready()
    if body.model is not None:
        service.check_model(body.model)
    ids = check_ids(body.tokens, info, "tokens")
    # in a thread: there may be a million
    return DetokenizeReply(prompt=await asyncio.to_thread(service.tokenizer.showing(None).decode, ids))
