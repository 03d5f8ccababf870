"""What is read from the engine when Prometheus asks, and not kept here: gauges, and counts that the engine keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from redraft.server.engine.client import EngineClient
from redraft.server.metrics import LABELS, Metrics


def _tasks() -> int | None:
    """Of the event loop; None where none runs."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return None


class EngineGauges(Collector):
    """Queue, KV, tasks and recent speed; nothing while the engine is loading."""

    def __init__(self, engine: EngineClient, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """One sample per metric."""
        info = self._engine.info
        if info is None:
            return
        stats = self._engine.stats
        window = self._metrics.recorder(info.draft).window
        labels = (self._metrics.model_name, info.draft)
        gauges = (
            ("requests_running", "Choices being decoded.", stats.running),
            ("requests_waiting", "Choices waiting for a slot.", stats.waiting),
            ("kv_pages", "Pages of KV that there are.", stats.pages_total),
            ("kv_pages_used", "Pages of KV that running choices hold.", stats.pages_used),
            ("kv_pages_kept", "Pages of KV that nobody holds, kept for prompts that begin the same.", stats.pages_kept),
            ("server_tasks", "Tasks of the server's own process, those of connections included.", _tasks()),
            ("tokens_per_second", "Tokens made, over the last 10 s.", window.tokens_per_second),
            ("acceptance_length_mean", "Tokens per round, over the last 10 s.", window.tokens_per_round),
        )
        counters = (
            ("preemptions", "Times a choice gave up its KV to an older one and had to wait again.", stats.preemptions),
            ("prefix_cache_queries", "Prompt tokens of choices that were admitted.", stats.prompt_tokens),
            ("out_of_memory", "Passes that failed for want of device memory.", stats.out_of_memory),
            ("prefix_cache_hits", "Of these, tokens whose KV was there already.", stats.reused_tokens),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"redraft_{name}", text, labels=LABELS)
            if value is not None:
                gauge.add_metric(labels, value)
            yield gauge
        for name, text, total in counters:
            counter = CounterMetricFamily(f"redraft_{name}", text, labels=LABELS)
            counter.add_metric(labels, total)
            yield counter
