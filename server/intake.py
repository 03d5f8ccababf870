"""From a validated body to choices: tokenise, check against the model's sizes, draw seeds."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence

from redraft.server.choice import Choice
from redraft.server.detokenize import Detokenizer
from redraft.server.engine.types import EngineInfo, Request, SamplingParams
from redraft.server.errors import clip, invalid
from redraft.server.generation import Generation
from redraft.server.limits import THREAD_CHARS
from redraft.server.observe import Asked, note
from redraft.server.record import ChoiceRecord
from redraft.server.schemas import GenerationRequest
from redraft.server.service import Service
from redraft.server.stops import StopStrings
from redraft.server.text import TextTokenizer

SEED_MASK = 2**64 - 1


async def tokenise(
    tokenizer: TextTokenizer, text: str, info: EngineInfo, param: str, *, special_tokens: bool
) -> tuple[int, ...]:
    """Token ids of ``text``, long texts in a thread; 400 when one is only the tokenizer's and not the target's."""
    if len(text) < THREAD_CHARS:
        ids = tokenizer.encode(text, special_tokens=special_tokens)
    else:
        ids = await asyncio.to_thread(tokenizer.encode, text, special_tokens=special_tokens)
    return check_ids(ids, info, param)


def check_ids(ids: Sequence[int], info: EngineInfo, param: str) -> tuple[int, ...]:
    """``ids`` as they go to the engine; 400 when one is not of the vocabulary."""
    if ids and (min(ids) < 0 or max(ids) >= info.vocab_size):
        wrong = next(token for token in ids if not 0 <= token < info.vocab_size)
        message = f"Token id {clip(str(wrong), 24)} in '{param}' is not in 0..{info.vocab_size - 1}."
        raise invalid(param, message, "invalid_token_id")
    return tuple(ids)


def room(prompt: Sequence[int], max_tokens: int | None, default: int | None, info: EngineInfo, param: str) -> int:
    """How many tokens may follow ``prompt``: what was asked for, or ``default`` cut to the context; None fills it.

    400 when the prompt is empty, leaves no room, or does not fit together with the ``max_tokens`` asked for.
    """
    if not prompt:
        raise invalid(param, "The prompt is empty.", "empty_prompt")
    left = info.max_model_len - len(prompt)
    if left < (max_tokens or 1):
        raise invalid(
            param,
            f"The context holds {info.max_model_len} tokens; the prompt has {len(prompt)} "
            f"and {max_tokens or 'at least 1'} more were asked for.",
            "context_length_exceeded",
        )
    if max_tokens is not None:
        return max_tokens
    return left if default is None else min(left, default)


def plan(
    service: Service,
    info: EngineInfo,
    body: GenerationRequest,
    reply_id: str,
    prompts: Sequence[tuple[tuple[int, ...], int]],
    grammar: str | None = None,
) -> Generation:
    """The choices that ``body`` asks for, ``n`` of each of ``prompts`` (token ids and how many may follow).

    ``grammar``: what all of them follow (structured.py).
    """
    check_ids(body.stop_token_ids, info, "stop_token_ids")
    check_ids([token for token, _ in body.logit_bias], info, "logit_bias")
    seed = secrets.randbits(64) if body.seed is None else body.seed
    choices = [
        _choice(
            service,
            info,
            body,
            Request(
                f"{reply_id}-{number * body.n + index}",
                prompt,
                _params(body, max_tokens, _seed(seed, index, body.n)),
                max_nodes=body.max_nodes,
                grammar=grammar,
                cache_salt=body.cache_salt or "",
            ),
            number * body.n + index,
        )
        for number, (prompt, max_tokens) in enumerate(prompts)
        for index in range(body.n)
    ]
    note(Asked(reply_id, body, info.draft, len(prompts), [choice.record for choice in choices]))
    return Generation(service.engine, choices, sum(len(prompt) for prompt, _ in prompts), body.n)


def _choice(
    service: Service,
    info: EngineInfo,
    body: GenerationRequest,
    request: Request,
    index: int,
) -> Choice:
    recorder = service.metrics.recorder(info.draft)
    return Choice(
        index,
        request,
        Detokenizer(service.tokenizer),
        StopStrings(body.stop, shown=body.include_stop_str_in_output),
        _hidden(request.params, info, body),
        lambda: ChoiceRecord(recorder, len(request.prompt), max_tokens=request.params.max_tokens),
    )


def _params(body: GenerationRequest, max_tokens: int, seed: int) -> SamplingParams:
    """What the engine is told of sampling; 400 when fewer tokens may be made than have to be."""
    if body.min_tokens > max_tokens:
        raise invalid(
            "min_tokens",
            f"min_tokens is {body.min_tokens}, but at most {max_tokens} tokens may be made.",
            "invalid_value",
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        seed=seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        min_tokens=body.min_tokens,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
    )


def _hidden(params: SamplingParams, info: EngineInfo, body: GenerationRequest) -> frozenset[int]:
    """End tokens that show no text."""
    ends = frozenset(params.ends(info.eos_token_ids))
    return ends - frozenset(body.stop_token_ids) if body.include_stop_str_in_output else ends


def _seed(seed: int, index: int, n: int) -> int:
    """The seed of choice ``index`` of ``n``: the request's own for one choice, a hash of both for several."""
    if n == 1:
        return seed
    key = (seed & SEED_MASK).to_bytes(8, "little") + index.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
