"""Decoding speed on token ids: plain and speculative in turn, alone and together, beside what was predicted of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.measure import FileRun, Pair, Reply
from redraft.benchmarks.predict_speed import Answers, Drafting, expected_speed
from redraft.benchmarks.prompts import PromptFile
from redraft.benchmarks.report import figures, table
from redraft.drafts.base import Drafter
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import SamplingParams

Prompts = Sequence[Sequence[int]]


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
    """``expected_speed`` of what was decoded: the tokens of answers and rounds are those of the run (``alone``)."""
    answers = Answers(round(fmean(map(len, prompts))), alone["tokens"] / alone["requests"], alone["tau"])
    spec, itemsize = engine.target.spec, engine.target.dtype.itemsize
    found = expected_speed(spec, drafting_of(engine, drafter), answers, itemsize, bytes_per_second)
    found["plain_step_milliseconds"]["measured"] = 1e3 / alone["plain_tokens_per_second"]
    return found


def drafting_of(engine: Engine, drafter: Drafter) -> Drafting | None:
    """How ``engine`` drafts with ``drafter``; None for another kind than DFlash and n-gram lookup."""
    pair = (drafter.first, drafter.second) if isinstance(drafter, MergedDrafter) else (drafter,)
    trained = [one for one in pair if isinstance(one, DFlashDrafter)]
    lookup = [one for one in pair if isinstance(one, NgramDrafter)]
    if len(trained) + len(lookup) < len(pair):
        return None
    config = trained[0].config if trained else None
    verified = min(engine.pacer.most_nodes, drafter.max_nodes)
    return Drafting(config, bool(lookup), pair[0].max_nodes, verified)


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
