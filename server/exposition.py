"""Counts as Prometheus' families, under our names, vLLM's or both.

vLLM's names know nothing of drafts: what is counted by draft is summed under them, and ``engine`` is always 0, for a
server has one engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from redraft.server.instruments import Distribution, Series
from redraft.server.metric_table import Metric
from redraft.server.settings import Names

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Values = Mapping[tuple[str, ...], float | Distribution]
"""By draft and the metric's own labels."""


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The registry in the format that the header ``Accept`` asks for, and its content type.

    Every name here is of letters, digits, underscores and colons, and needs no escaping, whatever the scheme.  It is
    switched off because prometheus-client's takes the colon out of the samples of OpenMetrics and leaves it in their
    type, so that what Prometheus stores is not ``vllm:`` but ``vllm_``.
    """
    _, content_type = choose_encoder(accept)
    if content_type.startswith("application/openmetrics-text"):
        text: bytes = openmetrics.generate_latest(registry, escaping=openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry, escaping=openmetrics.ALLOWUTF8), CONTENT_TYPE_PLAIN_0_0_4


class Exposition:
    """Writes metrics under the names that were asked for."""

    def __init__(self, names: Names, model_name: str) -> None:
        self._ours = names != "vllm"
        self._vllm = names != "redraft"
        self._model_name = model_name
        self.context: int | None = None
        """Length beyond which edges in tokens are left out."""

    def families(self, metric: Metric, values: Values) -> Iterator[Family]:
        """``metric`` with what is known of it."""
        if self._ours:
            labels = ("model_name", *(("draft",) if metric.by_draft else ()), *metric.labels)
            known = values if metric.by_draft else {key[1:]: value for key, value in values.items()}
            rows = {(self._model_name, *key): value for key, value in known.items()}
            yield self._family(f"redraft_{metric.name}", metric, labels, rows)
        if self._vllm and metric.vllm is not None:
            own = metric.labels if metric.vllm_labels is None else metric.vllm_labels
            rows = {(self._model_name, "0", *key): value for key, value in _over_drafts(metric, values).items()}
            yield self._family(f"vllm:{metric.vllm}", metric, ("model_name", "engine", *own), rows)

    def series(self, series: Series) -> Iterator[Family]:
        """What is counted in ``series``."""
        counts = {key: count.value for key, count in series.counts.items()}
        yield from self.families(series.metric, {**counts, **series.distributions})

    def _family(self, name: str, metric: Metric, labels: tuple[str, ...], rows: Values) -> Family:
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(name, metric.help, labels=labels)
            for key, value in rows.items():
                assert isinstance(value, Distribution)
                histogram.add_metric(key, self._buckets(metric, value), value.total)
            return histogram
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(name, metric.help, labels=labels)
        for key, value in rows.items():
            assert not isinstance(value, Distribution)
            family.add_metric(key, value)
        return family

    def _buckets(self, metric: Metric, value: Distribution) -> list[tuple[str, float]]:
        """Upper edges and how much lies at or below them."""
        most = self.context if metric.to_context and self.context is not None else float("inf")
        upto = list(accumulate(value.counts))
        shown = [
            (str(float(edge)), float(count)) for edge, count in zip(value.edges, upto, strict=False) if edge <= most
        ]
        return [*shown, ("+Inf", float(upto[-1]))]


def _over_drafts(metric: Metric, values: Values) -> Values:
    """``values`` summed over drafts, the last label in vLLM's words."""
    summed: dict[tuple[str, ...], list[float | Distribution]] = defaultdict(list)
    for (_, *labels), value in values.items():
        if metric.vllm_values is not None:
            if labels[-1] not in metric.vllm_values:
                continue
            labels[-1] = metric.vllm_values[labels[-1]]
        summed[tuple(labels)].append(value)
    return {labels: _sum(metric, each) for labels, each in summed.items()}


def _sum(metric: Metric, values: list[float | Distribution]) -> float | Distribution:
    if len(values) == 1:
        return values[0]
    total = Distribution(metric.edges)
    plain = 0.0
    for value in values:
        if isinstance(value, Distribution):
            total.counts = [a + b for a, b in zip(total.counts, value.counts, strict=True)]
            total.total += value.total
        else:
            plain += value
    return total if metric.kind == "histogram" else plain
