"""Gauges that are read from the engine when Prometheus asks, and not kept."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from redraft.server.engine.client import EngineClient
from redraft.server.metrics import LABELS, Metrics


class EngineGauges(Collector):
    """Queue and recent speed; nothing while the engine is loading."""

    def __init__(self, engine: EngineClient, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample per gauge."""
        info = self._engine.info
        if info is None:
            return
        stats = self._engine.stats
        window = self._metrics.recorder(info.draft).window
        rows = (
            ("requests_running", "Choices being decoded.", stats.running),
            ("requests_waiting", "Choices waiting for a slot.", stats.waiting),
            ("tokens_per_second", "Tokens made, over the last 10 s.", window.tokens_per_second),
            ("acceptance_length_mean", "Tokens per round, over the last 10 s.", window.tokens_per_round),
        )
        for name, text, value in rows:
            family = GaugeMetricFamily(f"redraft_{name}", text, labels=LABELS)
            if value is not None:
                family.add_metric((self._metrics.model_name, info.draft), value)
            yield family
