"""Decoding speed on token ids: plain and speculative in turn, alone and together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.measure import FileRun, Pair, Reply
from redraft.benchmarks.prompts import PromptFile
from redraft.benchmarks.report import figures, table
from redraft.benchmarks.traffic import target_pass
from redraft.drafts.base import Drafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine.engine import Engine
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.types import SamplingParams

Prompts = Sequence[Sequence[int]]


def speed(engine: Engine, drafter: Drafter, prompts: Prompts, max_tokens: int, repeat: int) -> dict[str, Any]:
    """``alone``: the figures of ``bench speed``; ``together``: tokens per second of all prompts at once.

    ``weight_bytes`` times plain tokens per second, as a share of the copy bandwidth, tells how near to memory's limit
    plain decoding is.
    """
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    drafters = {"plain": NoDrafter(), "speculative": drafter}
    for one in drafters.values():
        decode(engine, one, prompts, params)
    run = FileRun(PromptFile("token ids", tuple(("",) for _ in prompts)))
    together: dict[str, list[float]] = {name: [] for name in drafters}
    for number in range(repeat):
        run.passes.append(
            [_pair(engine, drafters, prompt, params, place + number) for place, prompt in enumerate(prompts)]
        )
        for name, one in drafters.items():
            together[name].append(_together(engine, one, prompts, params))
    alone = figures(run)
    assert alone is not None
    print(table([alone]))
    spec = engine.info
    return {
        "target": spec.target,
        "draft": spec.draft,
        "max_nodes": spec.max_nodes,
        "weight_bytes": engine.target.spec.parameters * engine.target.dtype.itemsize,
        "alone": alone,
        "together": {name: median(speeds) for name, speeds in together.items()},
        "prompts_together": len(prompts),
    }


def plain_step(engine: Engine, tokens_per_second: float, context: int, copy_bytes_per_second: float) -> dict[str, Any]:
    """Milliseconds of a step of plain decoding, one request alone: measured, prefill included, and by its traffic."""
    traffic = target_pass(engine.target.spec, row_bucket(1), [context], engine.target.dtype.itemsize)
    found = {
        "context": context,
        "bytes": traffic.total,
        "milliseconds": 1e3 / tokens_per_second,
        "traffic_milliseconds": 1e3 * traffic.seconds(copy_bytes_per_second),
        "predicted_milliseconds": 1e3 * traffic.predicted_seconds(copy_bytes_per_second),
    }
    print(
        "  plain step: {milliseconds:.3f} ms, its traffic alone {traffic_milliseconds:.3f} ms, "
        "with launches {predicted_milliseconds:.3f} ms".format(**found)
    )
    return found


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
