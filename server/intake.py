"""From a validated body to choices: tokenise, check against the model's sizes, draw seeds."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence

from redraft.server.choice import Choice
from redraft.server.detokenize import Decoder, Detokenizer
from redraft.server.engine.types import EngineInfo, Request, SamplingParams
from redraft.server.errors import clip, invalid
from redraft.server.generation import Generation
from redraft.server.limits import MAX_PROMPT_SCORES, THREAD_CHARS
from redraft.server.observe import Asked, note
from redraft.server.output.reader import OutputReader
from redraft.server.record import ChoiceRecord
from redraft.server.rounds import RoundWriter
from redraft.server.schemas import CompletionRequest, GenerationRequest
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
    since: float,
    grammar: str | None = None,
    reader: Callable[[], OutputReader] | None = None,
) -> Generation:
    """The choices that ``body`` asks for, ``made`` of each of ``prompts`` (token ids and how many may follow).

    ``since``: when the request came; ``grammar``: what all of them follow (structured.py); ``reader`` makes what reads
    a choice's text, where that may be more than text.
    """
    check_ids(body.stop_token_ids, info, "stop_token_ids")
    check_ids([token for token, _ in body.logit_bias], info, "logit_bias")
    _check_scores(body, sum(len(prompt) for prompt, _ in prompts))
    seed = secrets.randbits(64) if body.seed is None else body.seed
    decoder = _decoder(service, body, reader)
    choices = [
        _choice(
            service,
            info,
            body,
            decoder,
            _request(
                body, f"{reply_id}-{number * body.made + i}", prompt, max_tokens, _seed(seed, i, body.made), grammar
            ),
            number * body.made + i,
            reader and reader(),
        )
        for number, (prompt, max_tokens) in enumerate(prompts)
        for i in range(body.made)
    ]
    note(Asked(reply_id, body, info.draft, len(prompts), [choice.record for choice in choices]))
    prompt_tokens = sum(len(prompt) for prompt, _ in prompts)
    return Generation(service.engine, service.admission, choices, prompt_tokens, body.made, body.n, since)


def _choice(
    service: Service,
    info: EngineInfo,
    body: GenerationRequest,
    decoder: Decoder,
    request: Request,
    index: int,
    reader: OutputReader | None,
) -> Choice:
    recorder = service.metrics.recorder(info.draft)
    return Choice(
        index,
        request,
        Detokenizer(decoder),
        StopStrings(body.stop, shown=body.include_stop_str_in_output),
        _hidden(request.params, info, body),
        lambda: ChoiceRecord(recorder, len(request.prompt), max_tokens=request.params.max_tokens),
        reader,
        RoundWriter(decoder, request.prompt[-1]) if body.include_rounds else None,
    )


def _request(
    body: GenerationRequest, request_id: str, prompt: tuple[int, ...], max_tokens: int, seed: int, grammar: str | None
) -> Request:
    params = _params(body, max_tokens, seed)
    return Request(
        request_id,
        prompt,
        params,
        max_nodes=body.max_nodes,
        # every row of a prompt must be computed to tell of it
        reuse=params.prompt_logprobs is None,
        grammar=grammar,
        cache_salt=body.cache_salt or "",
        show_tree=body.include_rounds,
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
        # which choices are best is told by their log-probabilities
        logprobs=0 if body.tops is None and body.made > body.n else body.tops,
        prompt_logprobs=_prompt_tops(body),
    )


def _check_scores(body: GenerationRequest, prompt_tokens: int) -> None:
    """400 when more is to be told of prompts than a reply can hold."""
    top = _prompt_tops(body)
    scores = 0 if top is None else prompt_tokens * body.made * (top + 1)
    if scores > MAX_PROMPT_SCORES:
        param = "logprobs" if body.prompt_logprobs is None else "prompt_logprobs"
        message = f"{param}: {scores} log-probabilities of prompts were asked for; {MAX_PROMPT_SCORES} are the most."
        raise invalid(param, message, "invalid_value")


def _prompt_tops(body: GenerationRequest) -> int | None:
    """How many of the likeliest tokens to name in the place of each of the prompt's; None if nothing is told of it."""
    echoed = body.tops if isinstance(body, CompletionRequest) and body.echo else None
    asked = [top for top in (body.prompt_logprobs, echoed) if top is not None]
    return max(asked, default=None)


def _hidden(params: SamplingParams, info: EngineInfo, body: GenerationRequest) -> frozenset[int]:
    """End tokens that show no text.

    With ``include_stop_str_in_output`` those that the client named show, and the model's own where special tokens do.
    """
    ends = frozenset(params.ends(info.eos_token_ids))
    if not body.include_stop_str_in_output:
        return ends
    return ends - frozenset(body.stop_token_ids) if body.skip_special_tokens else frozenset()


def _decoder(service: Service, body: GenerationRequest, reader: Callable[[], OutputReader] | None) -> Decoder:
    """Shows the special tokens that the client wants to see, or that what reads the text must."""
    if not body.skip_special_tokens:
        return service.tokenizer.showing(None)
    return service.tokenizer if reader is None else service.tokenizer.showing(reader().marks)


def _seed(seed: int, index: int, n: int) -> int:
    """The seed of choice ``index`` of ``n``: the request's own for one choice, a hash of both for several."""
    if n == 1:
        return seed
    key = (seed & SEED_MASK).to_bytes(8, "little") + index.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
