"""Prometheus metrics of the server.  Labels are the model and mostly the draft, never anything of a request.

A *round* is one ``RoundOutput`` that carries tokens; without a draft each round gives one token, and is counted too, so
that rounds and acceptance length mean the same with and without speculation.  Counters are what to compute rates from;
the gauges over the last ten seconds are for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from redraft.server.engine.types import RoundOutput
from redraft.server.window import Window

LABELS = ("model_name", "draft")
TTFT_EDGES = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
# vLLM's edges and finer ones below, where a small model with speculation lives
FINE_EDGES = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075)
GAP_EDGES = (*FINE_EDGES, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
DURATION_EDGES = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
LENGTH_EDGES = tuple(range(1, 34))


class Metrics:
    """The instruments, registered in ``registry``."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"redraft_{name}", text, (*LABELS, *labels), registry=registry)

        def histogram(name: str, text: str, edges: tuple[float, ...]) -> Histogram:
            return Histogram(f"redraft_{name}", text, LABELS, buckets=edges, registry=registry)

        self.registry = registry
        self.model_name = model_name
        self.rounds = counter("spec_rounds", "Rounds that committed tokens, per request.")
        self.drafted = counter("spec_draft_tokens", "Drafted nodes that were verified.")
        self.accepted = counter("spec_accepted_tokens", "Drafted tokens that were accepted, bonus tokens not counted.")
        self.accepted_at = counter(
            "spec_accepted_tokens_per_pos", "Drafted tokens accepted, by 0-based position on the path.", "position"
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens whose prefill ended, once per choice.")
        self.generated = counter("generation_tokens", "Tokens made, up to each choice's finish.")
        self.requests = counter("requests", "Choices that ended.", "finish_reason")
        self._limits = Counter(
            "redraft_limits_hit",
            "Requests that a limit of the server refused or ended.",
            ("model_name", "limit"),
            registry=registry,
        )
        self.acceptance_length = histogram(
            "acceptance_length", "Tokens committed per round, the bonus token included.", LENGTH_EDGES
        )
        self.first_token = histogram("time_to_first_token_seconds", "From submission to the first token.", TTFT_EDGES)
        self.token_gap = histogram(
            "inter_token_latency_seconds", "Per token: the gap before an event divided by its tokens.", GAP_EDGES
        )
        self.event_gap = histogram(
            "inter_event_latency_seconds", "Between two events that brought tokens, however many each.", GAP_EDGES
        )
        self.duration = histogram("request_duration_seconds", "From submission to the end.", DURATION_EDGES)
        self._recorders: dict[str, Recorder] = {}

    def announce_limits(self, limits: Iterable[str]) -> None:
        """Show each of ``limits`` with the count 0, so that the first hit is a rise."""
        for limit in limits:
            self._limits.labels(self.model_name, limit)

    def limit_hit(self, limit: str) -> None:
        """``limit`` (admission.py has their names) refused or ended a request."""
        self._limits.labels(self.model_name, limit).inc()

    def recorder(self, draft: str) -> Recorder:
        """Where to count what happens under ``draft``."""
        if draft not in self._recorders:
            self._recorders[draft] = Recorder(self, draft)
        return self._recorders[draft]


class Recorder:
    """The instruments of one draft, with their labels looked up once."""

    def __init__(self, metrics: Metrics, draft: str, clock: Callable[[], float] = time.monotonic) -> None:
        labels = (metrics.model_name, draft)
        self.window = Window(clock)
        """What the last ten seconds brought."""
        self._rounds = metrics.rounds.labels(*labels)
        self._drafted = metrics.drafted.labels(*labels)
        self._accepted = metrics.accepted.labels(*labels)
        self._accepted_at = metrics.accepted_at
        self._labels = labels
        self._positions: list[Counter] = []
        self._prompt_tokens = metrics.prompt_tokens.labels(*labels)
        self._generated = metrics.generated.labels(*labels)
        self._requests = metrics.requests
        self._acceptance_length = metrics.acceptance_length.labels(*labels)
        self._first_token = metrics.first_token.labels(*labels)
        self._token_gap = metrics.token_gap.labels(*labels)
        self._event_gap = metrics.event_gap.labels(*labels)
        self._duration = metrics.duration.labels(*labels)

    def round(self, output: RoundOutput) -> None:
        """One round that committed tokens."""
        self._rounds.inc()
        self._drafted.inc(output.drafted)
        self._accepted.inc(output.accepted)
        while len(self._positions) < output.accepted:
            self._positions.append(self._accepted_at.labels(*self._labels, str(len(self._positions))))
        for position in self._positions[: output.accepted]:
            position.inc()
        self._acceptance_length.observe(len(output.tokens))
        self.window.add(len(output.tokens))

    def generation(self, tokens: int) -> None:
        """Tokens that became part of a reply."""
        self._generated.inc(tokens)

    def first_event(self, prompt_tokens: int, seconds: float) -> None:
        """A choice's first tokens, ``seconds`` after it was submitted."""
        self._prompt_tokens.inc(prompt_tokens)
        self._first_token.observe(seconds)

    def later_event(self, tokens: int, gap: float) -> None:
        """``tokens`` together, ``gap`` seconds after the event before."""
        self._event_gap.observe(gap)
        for _ in range(tokens):
            self._token_gap.observe(gap / tokens)

    def finished(self, reason: str, seconds: float) -> None:
        """A choice ended."""
        self._requests.labels(*self._labels, reason).inc()
        self._duration.observe(seconds)
