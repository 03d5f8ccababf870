"""Decoding speed on token ids: plain and speculative in turn, alone and together, beside what was predicted of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.measure import FileRun, Pair, Reply
from redraft.benchmarks.predict import Prediction, predicted_prefill, predicted_round, predicted_step
from redraft.benchmarks.prompts import PromptFile
from redraft.benchmarks.report import figures, table
from redraft.benchmarks.traffic import LAUNCH_SECONDS
from redraft.drafts.base import Drafter
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import SamplingParams

Prompts = Sequence[Sequence[int]]
PEER_LAUNCHES = 8
"""A layer's seven products, which transformers does not merge, and its attention."""


def speed(
    engine: Engine, drafter: Drafter, name: str, prompts: Prompts, max_tokens: int, repeat: int
) -> dict[str, Any]:
    """Of the set ``name``: ``alone``, the figures of ``bench speed``; ``together``, all prompts' tokens per second.

    The longest and the shortest prompt are answered twice before, both ways: so what comes is compiled and recorded.
    """
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    drafters = {"plain": NoDrafter(), "speculative": drafter}
    _warm_up(engine, drafters, [max(prompts, key=len), min(prompts, key=len)], params)
    run = FileRun(PromptFile(name, tuple(("",) for _ in prompts)))
    together: dict[str, list[float]] = {name: [] for name in drafters}
    for number in range(repeat):
        run.passes.append(
            [_pair(engine, drafters, prompt, params, place + number) for place, prompt in enumerate(prompts)]
        )
        for way, one in drafters.items():
            together[way].append(_together(engine, one, prompts, params))
    alone = figures(run)
    assert alone is not None
    print(table([alone]))
    return {
        "alone": alone,
        "together": {name: median(speeds) for name, speeds in together.items()},
        "prompts_together": min(len(prompts), engine.state.slots),
    }


def same_answers(engine: Engine, drafter: Drafter, prompts: Prompts, max_tokens: int) -> dict[str, dict[str, Any]]:
    """Plain and speculative tokens per second over exactly ``max_tokens`` tokens of each prompt, one after the other.

    What peers.py has other systems do.
    """
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    found = {}
    for name, one in {"plain": NoDrafter(), "speculative": drafter}.items():
        _warm_up(engine, {name: one}, prompts, params)
        begun = time.perf_counter()
        tokens = sum(len(decode(engine, one, [prompt], params)[0].tokens) for prompt in prompts)
        seconds = time.perf_counter() - begun
        found[name] = {"tokens_per_second": tokens / seconds, "tokens": tokens, "prompts": len(prompts)}
    return found


def expected(
    engine: Engine, drafter: Drafter, prompts: Prompts, alone: Mapping[str, Any], bytes_per_second: float
) -> dict[str, Any]:
    """What plain and speculative decoding of ``prompts``, one at a time, take by bytes and launches: tokens per second.

    ``floor``: by bytes alone; ``predicted``: with launches.  How many tokens an answer has and how many a round commits
    is not to be had from shapes, so both are those of the run (``alone``); they are counts, no times.  What a draft of
    another kind than DFlash and n-gram lookup launches is not counted, and its speed not predicted.
    """
    spec, itemsize = engine.target.spec, engine.target.dtype.itemsize
    tokens = alone["tokens"] / alone["requests"]
    prompt = round(fmean(map(len, prompts)))
    context = prompt + round(tokens / 2)
    prefill = predicted_prefill(spec, prompt, itemsize)
    step = predicted_step(spec, 1, 1, context, itemsize, read_back=True)
    found: dict[str, Any] = {
        "context": context,
        "plain_step_bytes": step.traffic.total,
        "plain_step_milliseconds": {
            "measured": 1e3 / alone["plain_tokens_per_second"],
            "floor": 1e3 * step.traffic.seconds(bytes_per_second),
            "predicted": _milliseconds(step, bytes_per_second),
        },
        "plain": _answers(prefill, step, tokens, tokens, bytes_per_second),
    }
    parts, tau = _parts(drafter), alone["tau"]
    if parts is None or not tau:
        return found | {"speculative": {"floor": None, "predicted": None}}
    config, lookup = parts
    allowed = min(engine.pacer.most_nodes, drafter.max_nodes)
    nodes = drafter.max_nodes // (2 if config is not None and lookup else 1)
    round_ = predicted_round(
        spec, config, 1, 1 + allowed, context, itemsize, nodes=nodes, with_lookup=lookup, accepted=tau - 1,
        read_back=True,
    )  # fmt: skip
    return found | {
        "rows": 1 + allowed,
        "round_milliseconds": _milliseconds(round_, bytes_per_second),
        "speculative": _answers(prefill, round_, tokens, math.ceil(tokens / tau), bytes_per_second),
    }


def bound_of_peer(engine: Engine, prompts: Prompts, max_tokens: int, bytes_per_second: float) -> float | None:
    """How many times as fast plain decoding is predicted to be, at least, as a peer that reads the same bytes.

    The peer has no fewer than ``PEER_LAUNCHES`` launches a layer and one for the head, in a graph, and a host that
    takes no time at all: what it has beside, and what its host takes, cannot be told without running it.
    """
    spec, context = engine.target.spec, round(fmean(map(len, prompts))) + max_tokens // 2
    step = predicted_step(spec, 1, 1, context, engine.target.dtype.itemsize, read_back=True)
    ours = step.seconds(bytes_per_second)
    theirs = step.traffic.seconds(bytes_per_second) + (PEER_LAUNCHES * spec.layers + 1) * LAUNCH_SECONDS
    return None if ours is None else theirs / ours


def _parts(drafter: Drafter) -> tuple[DFlashConfig | None, bool] | None:
    """The DFlash draft's config, if there is one, and whether there is n-gram lookup; None for another kind."""
    if isinstance(drafter, MergedDrafter):
        first, second = _parts(drafter.first), _parts(drafter.second)
        return (first[0], True) if first is not None and second == (None, True) else None
    if isinstance(drafter, NgramDrafter):
        return None, True
    return (drafter.config, False) if isinstance(drafter, DFlashDrafter) else None


def _answers(prefill: Prediction, step: Prediction, tokens: float, steps: float, bandwidth: float) -> dict[str, Any]:
    """Tokens per second of answers of ``tokens`` tokens in ``steps`` steps."""
    before, each = prefill.seconds(bandwidth), step.seconds(bandwidth)
    moved = prefill.traffic.seconds(bandwidth) + steps * step.traffic.seconds(bandwidth)
    known = before is not None and each is not None
    return {"floor": tokens / moved, "predicted": tokens / (before + steps * each) if known else None}  # type: ignore[operator]


def _milliseconds(one: Prediction, bandwidth: float) -> float | None:
    seconds = one.seconds(bandwidth)
    return None if seconds is None else 1e3 * seconds


def _warm_up(engine: Engine, drafters: Mapping[str, Drafter], prompts: Prompts, params: SamplingParams) -> None:
    """A kind of pass is compiled the first time it comes and recorded the second time (graphs.py)."""
    for one in drafters.values():
        for prompt in prompts:
            for _ in range(2):
                decode(engine, one, [prompt], params)


def _pair(
    engine: Engine, drafters: dict[str, Drafter], prompt: Sequence[int], params: SamplingParams, place: int
) -> Pair:
    """One prompt both ways; who goes first alternates with ``place``."""
    order = list(drafters) if place % 2 == 0 else list(drafters)[::-1]
    replies = {name: _reply(decode(engine, drafters[name], [prompt], params)[0]) for name in order}
    return Pair((replies["plain"],), (replies["speculative"],))


def _reply(decoded: Decoded) -> Reply:
    return Reply(decoded.seconds, len(decoded.tokens), tuple(decoded.tokens), "", decoded.rounds)


def _together(engine: Engine, drafter: Drafter, prompts: Prompts, params: SamplingParams) -> float:
    started = time.perf_counter()
    decoded = decode(engine, drafter, prompts, params)
    return sum(len(one.tokens) for one in decoded) / (time.perf_counter() - started)
