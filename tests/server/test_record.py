"""What is counted of one choice and of the last seconds, by a clock of the tests' own."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from redraft.server.engine.types import FinishReason, RoundOutput
from redraft.server.metrics import Metrics
from redraft.server.record import ChoiceRecord
from redraft.server.window import Window

LABELS = {"model_name": "toy", "draft": "canned-1"}


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self):
        return self.now


def test_gaps_per_token_and_per_event():
    clock = Clock()
    registry = CollectorRegistry()
    record = ChoiceRecord(Metrics(registry, "toy").recorder("canned-1"), 5, clock)
    steps = [(0.5, 2), (0.12, 4), (0.0, 0), (0.3, 1)]
    for gap, tokens in steps:
        clock.now += gap
        output = RoundOutput("x", tuple(range(tokens)), max(tokens - 1, 0), 6, queue_seconds=0.1)
        record.arrived(output)
        record.took(tokens)
    clock.now += 0.1
    record.finished(FinishReason.STOP)

    def value(name):
        return registry.get_sample_value(f"redraft_{name}", LABELS)

    assert value("time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert (value("inter_token_latency_seconds_count"), value("inter_event_latency_seconds_count")) == (5, 2)
    assert value("inter_token_latency_seconds_sum") == pytest.approx(0.42)
    assert registry.get_sample_value("redraft_inter_token_latency_seconds_bucket", {**LABELS, "le": "0.025"}) == 0
    assert registry.get_sample_value("redraft_inter_token_latency_seconds_bucket", {**LABELS, "le": "0.05"}) == 4
    assert value("request_duration_seconds_sum") == pytest.approx(1.02)
    assert value("request_queue_seconds_sum") == pytest.approx(0.1)
    assert value("request_prefill_seconds_sum") == pytest.approx(0.4)
    assert value("request_decode_seconds_sum") == pytest.approx(0.42)
    assert value("request_inference_seconds_sum") == pytest.approx(0.82)
    assert value("request_time_per_output_token_seconds_sum") == pytest.approx(0.084)
    assert value("request_acceptance_length_sum") == pytest.approx(7 / 3)
    assert value("request_prompt_tokens_sum") == value("request_prefill_kv_computed_tokens_sum") == 5
    assert value("request_generation_tokens_sum") == 7
    metrics = record.metrics(max_nodes=4)
    assert metrics.time_to_first_token_ms == pytest.approx(500)
    assert metrics.queue_time_ms == pytest.approx(100)
    assert metrics.generation_time_ms == pytest.approx(420)
    assert metrics.mean_itl_ms == pytest.approx(84)
    assert metrics.tokens_per_second == pytest.approx(7 / 0.92)
    for most in (4, 9):
        # as many classes as tokens that a step may draft, and one: AIPerf leaves out what does not fit
        told = record.metrics(max_nodes=most).speculative_decoding
        assert told.num_spec_tokens == max(most, 6)
        assert told.acceptance_histogram == [1, 1, 0, 1] + [0] * (told.num_spec_tokens - 3)


def test_window_forgets():
    clock = Clock()
    window = Window(clock)
    assert (window.tokens_per_second, window.tokens_per_round) == (0, None)
    for tokens in (3, 1):
        window.add(tokens)
        clock.now += 6
    assert (window.tokens_per_second, window.tokens_per_round) == (0.1, 1)
    clock.now += 6
    assert (window.tokens_per_second, window.tokens_per_round) == (0, None)
