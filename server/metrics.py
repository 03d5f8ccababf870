"""What the server counts for Prometheus.  Labels are the model and mostly the draft, never anything of a request.

A *round* is one ``RoundOutput`` that carries tokens; without a draft each round gives one token, and is counted too, so
that rounds and acceptance length mean the same with and without speculation.  Counters are what to compute rates from;
the gauges over the last ten seconds are for people.  metric_table.py has every name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from redraft.server.engine.types import EngineInfo, RoundOutput
from redraft.server.exposition import Exposition, Family
from redraft.server.instruments import Count, Distribution, Series
from redraft.server.metric_table import FINISHES, METRICS
from redraft.server.settings import Names
from redraft.server.window import Window

COUNTED = (
    "spec_rounds",
    "spec_drafts",
    "spec_draft_tokens",
    "spec_accepted_tokens",
    "spec_accepted_tokens_per_pos",
    "acceptance_length",
    "request_acceptance_length",
    "prompt_tokens",
    "prompt_tokens_cached",
    "prompt_tokens_by_source",
    "generation_tokens",
    "requests",
    "http_responses",
    "limits_hit",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_params_max_tokens",
    "request_max_num_generation_tokens",
    "request_prefill_kv_computed_tokens",
    "request_params_n",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "inter_event_latency_seconds",
    "request_time_per_output_token_seconds",
    "request_duration_seconds",
    "request_queue_seconds",
    "request_prefill_seconds",
    "request_decode_seconds",
    "request_inference_seconds",
)
"""What is counted here; the rest is read from the engine when Prometheus asks (gauges.py)."""


class Metrics(Collector):
    """The counts, shown in ``registry``."""

    def __init__(
        self,
        registry: CollectorRegistry,
        model_name: str,
        names: Names = "both",
        served: Callable[[], EngineInfo | None] = lambda: None,
    ) -> None:
        """``served``: what the engine says of itself, once it is ready."""
        self.registry = registry
        self._served = served
        self.exposition = Exposition(names, model_name)
        self.series = {name: Series(METRICS[name]) for name in COUNTED}
        self._recorders: dict[str, Recorder] = {}
        registry.register(self)

    def collect(self) -> Iterator[Family]:
        """Every count there is, those of the draft that is served from 0 on.

        Whoever takes the difference of two readings, as ``vllm bench serve`` does of the first one it makes and its
        last, would otherwise miss what has no count before the first request.
        """
        info = self._served()
        if info is not None:
            self.recorder(info.draft).announce_positions(info.max_nodes)
        for series in self.series.values():
            yield from self.exposition.series(series)

    def announce_limits(self, limits: Iterable[str]) -> None:
        """Show each of ``limits`` with the count 0, so that the first hit is a rise."""
        for limit in limits:
            self.series["limits_hit"].count("", limit)

    def limit_hit(self, limit: str) -> None:
        """``limit`` (admission.py has their names) refused or ended a request."""
        self.series["limits_hit"].count("", limit).inc()

    def answered(self, path: str, status: int) -> None:
        """A request to the route ``path`` was answered with ``status``."""
        self.series["http_responses"].count("", path, str(status)).inc()

    def recorder(self, draft: str) -> Recorder:
        """Where to count what happens under ``draft``."""
        if draft not in self._recorders:
            self._recorders[draft] = Recorder(self, draft)
        return self._recorders[draft]


class Recorder:
    """The counts of one draft, looked up once."""

    def __init__(self, metrics: Metrics, draft: str, clock: Callable[[], float] = time.monotonic) -> None:
        def count(name: str, *labels: str) -> Count:
            return metrics.series[name].count(draft, *labels)

        def distribution(name: str) -> Distribution:
            return metrics.series[name].distribution(draft)

        self.window = Window(clock)
        """What the last ten seconds brought."""
        self._count = count
        for finish in FINISHES:
            # from 0 on, so that the first of a kind is a rise
            count("requests", finish)
        self._rounds = count("spec_rounds")
        self._drafts = count("spec_drafts")
        self._drafted = count("spec_draft_tokens")
        self._accepted = count("spec_accepted_tokens")
        self._positions: list[Count] = []
        self._prompt_tokens = count("prompt_tokens")
        self._cached = count("prompt_tokens_cached")
        self._computed = count("prompt_tokens_by_source", "local_compute")
        self._found = count("prompt_tokens_by_source", "local_cache_hit")
        self._generated = count("generation_tokens")
        self._acceptance_length = distribution("acceptance_length")
        self._first_token = distribution("time_to_first_token_seconds")
        self._token_gap = distribution("inter_token_latency_seconds")
        self._event_gap = distribution("inter_event_latency_seconds")
        self._duration = distribution("request_duration_seconds")
        self._distribution = distribution

    def announce_positions(self, count: int) -> None:
        """Show so many positions of a path at least."""
        while len(self._positions) < count:
            self._positions.append(self._count("spec_accepted_tokens_per_pos", str(len(self._positions))))

    def round(self, output: RoundOutput) -> None:
        """One round that committed tokens."""
        self._rounds.value += 1
        if output.drafted:
            self._drafts.value += 1
            self._drafted.value += output.drafted
        self._accepted.value += output.accepted
        self.announce_positions(output.accepted)
        for position in self._positions[: output.accepted]:
            position.value += 1
        self._acceptance_length.observe(len(output.tokens))
        self.window.add(len(output.tokens))

    def generation(self, tokens: int) -> None:
        """Tokens that became part of a reply."""
        self._generated.value += tokens

    def first_event(self, prompt_tokens: int, reused: int, seconds: float) -> None:
        """A choice's first tokens, ``seconds`` after it was submitted; ``reused`` of its prompt was there already."""
        self._prompt_tokens.inc(prompt_tokens)
        self._cached.inc(reused)
        self._found.inc(reused)
        self._computed.inc(prompt_tokens - reused)
        self._first_token.observe(seconds)

    def later_event(self, tokens: int, gap: float) -> None:
        """``tokens`` together, ``gap`` seconds after the event before."""
        self._event_gap.observe(gap)
        self._token_gap.observe(gap / tokens, tokens)

    def finished(self, reason: str, seconds: float) -> None:
        """A choice ended."""
        self._count("requests", reason).inc()
        self._duration.observe(seconds)

    def observe(self, name: str, value: float) -> None:
        """Into the histogram ``name``; for what happens once a request."""
        self._distribution(name).observe(value)
