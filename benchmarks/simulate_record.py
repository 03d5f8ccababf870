"""Records what a simulation needs of a real engine: an acceptance trace, the costs of passes, its setup.

Recording decodes plainly while the draft proposes in every round, so that there is a tree for every place of every
text, whatever pace a simulation goes through it at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import torch

from redraft.benchmarks.simulate_replica import Setup
from redraft.benchmarks.simulate_trace import Text, Trace, judged
from redraft.server.engine.acceptance import Proposal
from redraft.server.engine.costs import CostTable
from redraft.server.engine.engine import Engine
from redraft.server.engine.measure_costs import Measurement
from redraft.server.engine.pace import Pace, Pacer
from redraft.server.engine.rows_plan import MIN_ROWS
from redraft.server.engine.sequence import Sequence as Running
from redraft.server.engine.types import RedraftError, Request, SamplingParams


class _Watching(Pacer):
    """Has a draft proposed in every round and nothing of it verified; keeps what was proposed."""

    def __init__(self, width: int, most_rows: int) -> None:
        super().__init__(most_rows, width, "auto", None)
        self.seen: dict[str, list[Proposal]] = {}

    def step(self, decoding: Sequence[Running], prefilling: Sequence[Running]) -> Pace:
        """As much prefill as there is room for; no nodes, but a draft."""
        waiting = sum(sequence.to_prefill for sequence in prefilling)
        taken = max(len(decoding), MIN_ROWS) if decoding else 0
        return Pace(0, bool(decoding), min(waiting, self.most_rows - taken))

    def proposed(self, request_id: str, proposal: Proposal) -> None:
        """Keep it."""
        self.seen.setdefault(request_id, []).append(proposal)


@contextmanager
def paced_by(engine: Engine, pacer: Pacer) -> Iterator[None]:
    """``pacer`` instead of the engine's own, for a while; the engine must be idle."""
    if engine.busy:
        raise RuntimeError("the pacer is exchanged only while the engine is idle")
    own, engine.pacer = engine.pacer, pacer
    try:
        yield
    finally:
        engine.pacer = own


def record(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    advance: Callable[[int], None] = lambda _: None,
) -> Trace:
    """A trace of the engine's draft on its own answers to ``prompts``; seeds as ``params`` has them.

    Raises ``RedraftError`` for a prompt that cannot run.
    """
    width = engine.drafter.max_nodes
    # what is proposed near the end of an answer is judged by how the text would have gone on
    longer = replace(params, max_tokens=params.max_tokens + width)
    watching, texts = _Watching(width, engine.pacer.most_rows), list[Text]()
    said: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    with paced_by(engine, watching):
        for name, prompt in zip(said, prompts, strict=True):
            # no nodes of its own: nothing is verified, so every round is one token
            engine.submit(Request(name, tuple(prompt), longer, max_nodes=0, reuse=False))
        while engine.busy:
            for output in engine.step().outputs:
                if output.error is not None:
                    raise RedraftError(output.error)
                said[output.request_id] += output.tokens
                advance(output.finish_reason is not None)
    for (name, tokens), prompt in zip(said.items(), prompts, strict=True):
        seen = watching.seen.get(name, [])
        if len(seen) != len(tokens):
            raise RuntimeError(f"{len(seen)} proposals for {len(tokens)} tokens")
        trees = [
            judged(one.parent, one.token, one.score, tokens[place : place + width]) for place, one in enumerate(seen)
        ]
        texts.append(Text(len(prompt), tuple(trees[: params.max_tokens])))
    info = engine.info
    facts = {"target": info.target, "draft": info.draft, "dtype": info.dtype, "temperature": params.temperature}
    return Trace(width, tuple(texts), facts)


def costs(engine: Engine, times: int = 3) -> CostTable:
    """What passes cost now: the medians of ``times`` tables; the engine must be idle and keep no pages.

    A single table takes small terms as differences of large ones, each measured twice: good enough to begin with for an
    engine that corrects itself, too noisy for one that does not.
    """
    if engine.busy or engine.scheduler.pool.kept:
        raise RuntimeError("costs are measured on an idle engine that keeps no pages")
    measurement = Measurement(
        engine.state, engine.target, engine.drafter, engine.make_attention, engine.graphs.make_recorder
    )
    with torch.inference_mode():
        return median_table([measurement.table(engine.pacer.most_rows) for _ in range(times)])


def median_table(tables: Sequence[CostTable]) -> CostTable:
    """Entry by entry, for the sizes that all of them have."""
    rows = _common([table.rows for table in tables])
    requests = _common([table.requests for table in tables])
    return CostTable(
        rows,
        tuple(median(table.forward(size) for table in tables) for size in rows),
        median(table.per_request for table in tables),
        median(table.per_row for table in tables),
        requests,
        tuple(median(table.draft(size) for table in tables) for size in requests),
        median(table.round for table in tables),
    )


def _common(sizes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(set[int].intersection(*map(set, sizes))))


def setup_of(engine: Engine) -> Setup:
    """What a replica must be like to stand for ``engine``."""
    return Setup(
        slots=engine.state.slots,
        pages=engine.scheduler.pool.total,
        max_model_len=engine.scheduler.max_model_len,
        tree_rows=engine.scheduler.tree_rows,
        most_rows=engine.pacer.most_rows,
        most_nodes=engine.pacer.most_nodes,
        speculation="auto" if engine.pacer.fixed is None else str(engine.pacer.fixed),
        lag=engine.lag,
        adaptive=engine.pacer.costs is not None,
    )
