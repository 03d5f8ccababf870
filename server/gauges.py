"""What is read from the engine when Prometheus asks, and not kept here: gauges, and counts that the engine keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.registry import Collector

from redraft.server.engine.client import EngineClient
from redraft.server.engine.config import PAGE
from redraft.server.engine.types import EngineInfo, EngineStats
from redraft.server.exposition import Family
from redraft.server.instruments import Distribution
from redraft.server.metric_table import METRICS
from redraft.server.metrics import Metrics
from redraft.server.window import Window

PER_MILLION_HOURS = 1e6 / 3600
"""A price per hour times this, by tokens per second, is a price per million tokens."""
Labelled = tuple[tuple[str, ...], float | Distribution]


def _tasks() -> int | None:
    """Of the event loop; None where none runs."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return None


class EngineGauges(Collector):
    """Queue, KV, passes and recent speed; while the engine is loading, only that it is."""

    def __init__(self, engine: EngineClient, metrics: Metrics, price_per_hour: float | None = None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._price = price_per_hour

    def collect(self) -> Iterator[Family]:
        """What is known at the moment."""
        info = self._engine.info
        alive = self._engine.alive
        yield from self._show("engine_up", ((), float(alive)), draft="")
        yield from self._show("engine_ready", ((), float(alive and info is not None)), draft="")
        if self._price is not None:
            yield from self._show("price_per_hour", ((), self._price), draft="")
        if info is None:
            return
        self._metrics.exposition.context = info.max_model_len
        for name, values in self._readings(info, self._engine.stats).items():
            yield from self._show(name, *values, draft=info.draft)

    def _readings(self, info: EngineInfo, stats: EngineStats) -> dict[str, list[Labelled]]:
        window = self._metrics.recorder(info.draft).window
        plain: dict[str, float] = {
            "requests_running": stats.running,
            "requests_waiting": stats.waiting,
            "kv_pages": stats.pages_total,
            "kv_pages_used": stats.pages_used,
            "kv_pages_kept": stats.pages_kept,
            "kv_usage": stats.pages_used / stats.pages_total if stats.pages_total else 0.0,
            "tokens_per_second": window.tokens_per_second,
            "preemptions": stats.preemptions,
            "prefix_cache_queries": stats.prompt_tokens,
            "prefix_cache_hits": stats.reused_tokens,
            "round_seconds": stats.passes.round_seconds,
            "out_of_memory": stats.out_of_memory,
        }
        labelled: dict[str, list[Labelled]] = {name: [((), value)] for name, value in plain.items()}
        labelled["requests_waiting_by_reason"] = [(("capacity",), stats.waiting)]
        labelled["kv_info"] = [((str(PAGE), str(stats.pages_total)), 1)]
        labelled["draft_info"] = [((str(info.max_nodes),), 1)]
        labelled["server_tasks"] = _if_any(_tasks())
        labelled |= _of_passes(stats)
        labelled["acceptance_length_mean"] = _if_any(window.tokens_per_round)
        labelled["cost_per_million_tokens"] = _if_any(self._cost(window))
        return labelled

    def _cost(self, window: Window) -> float | None:
        speed = window.tokens_per_second
        return None if self._price is None or not speed else self._price * PER_MILLION_HOURS / speed

    def _show(self, name: str, *values: Labelled, draft: str) -> Iterator[Family]:
        known = {(draft, *labels): value for labels, value in values}
        yield from self._metrics.exposition.families(METRICS[name], known)


def _of_passes(stats: EngineStats) -> dict[str, list[Labelled]]:
    passes = stats.passes
    return {
        "iteration_tokens": _histogram("iteration_tokens", passes.sizes, passes.tokens),
        "round_rows": _histogram("round_rows", passes.rounds, passes.rows),
        "spec_draft_tokens_by_origin": [
            (("draft",), passes.nodes - passes.forced),
            (("grammar",), passes.forced),
        ],
        # an engine that measured no costs has no estimate
        "plain_seconds_estimated": _if_any(passes.plain_seconds or None),
    }


def _histogram(name: str, counts: tuple[int, ...], total: float) -> list[Labelled]:
    """What the engine counted by classes, in the form of what is counted here; none before its first message."""
    if not counts:
        return []
    distribution = Distribution(METRICS[name].edges)
    distribution.counts, distribution.total = list(counts), total
    return [((), distribution)]


def _if_any(value: float | None) -> list[Labelled]:
    return [] if value is None else [((), value)]
