"""The exposition of a canned run, number by number."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from redraft.server.engine.types import EngineStats, FinishReason, RoundOutput
from redraft.server.metrics import GAP_EDGES, LENGTH_EDGES, Metrics
from redraft.server.record import ChoiceRecord
from redraft.server.window import Window

LABELS = {"model_name": "toy", "draft": "canned-1"}


def scrape(server):
    """Families by name, and samples by name and extra labels."""
    text = server.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {}
    for family in families.values():
        for sample in family.samples:
            # limits know nothing of drafts
            expected = {"model_name": "toy"} if family.name.startswith("redraft_limits_hit") else LABELS
            assert {name: value for name, value in sample.labels.items() if name in LABELS} == expected
            extra = tuple(value for name, value in sample.labels.items() if name not in LABELS)
            samples[(sample.name, *extra)] = sample.value
    return families, samples


def test_a_canned_run(serve, canned):
    # 22 tokens in rounds of 1, 3, 2, 4, 1, 3, 2, 4, 1, 1
    server = serve(canned.engine("Hello, wörld! 日本語"))
    for body in ({"n": 2}, {"stream": True}):
        assert server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi", **body}).status_code == 200
    families, samples = scrape(server)
    assert {name: kind.type for name, kind in families.items() if not name.endswith("_created")} == {
        "redraft_spec_rounds": "counter",
        "redraft_spec_draft_tokens": "counter",
        "redraft_spec_accepted_tokens": "counter",
        "redraft_spec_accepted_tokens_per_pos": "counter",
        "redraft_prompt_tokens": "counter",
        "redraft_generation_tokens": "counter",
        "redraft_requests": "counter",
        "redraft_limits_hit": "counter",
        "redraft_acceptance_length": "histogram",
        "redraft_time_to_first_token_seconds": "histogram",
        "redraft_inter_token_latency_seconds": "histogram",
        "redraft_inter_event_latency_seconds": "histogram",
        "redraft_request_duration_seconds": "histogram",
        "redraft_requests_running": "gauge",
        "redraft_requests_waiting": "gauge",
        "redraft_kv_pages": "gauge",
        "redraft_server_tasks": "gauge",
        "redraft_kv_pages_used": "gauge",
        "redraft_kv_pages_kept": "gauge",
        "redraft_preemptions": "counter",
        "redraft_out_of_memory": "counter",
        "redraft_prefix_cache_queries": "counter",
        "redraft_prefix_cache_hits": "counter",
        "redraft_tokens_per_second": "gauge",
        "redraft_acceptance_length_mean": "gauge",
    }
    expected = {
        ("redraft_spec_rounds_total",): 30,
        ("redraft_spec_draft_tokens_total",): 120,
        ("redraft_spec_accepted_tokens_total",): 36,
        ("redraft_spec_accepted_tokens_per_pos_total", "0"): 18,
        ("redraft_spec_accepted_tokens_per_pos_total", "1"): 12,
        ("redraft_spec_accepted_tokens_per_pos_total", "2"): 6,
        ("redraft_prompt_tokens_total",): 6,
        ("redraft_generation_tokens_total",): 66,
        ("redraft_requests_total", "stop"): 3,
        ("redraft_acceptance_length_count",): 30,
        ("redraft_acceptance_length_sum",): 66,
        ("redraft_acceptance_length_bucket", "1.0"): 12,
        ("redraft_acceptance_length_bucket", "2.0"): 18,
        ("redraft_acceptance_length_bucket", "3.0"): 24,
        ("redraft_acceptance_length_bucket", "4.0"): 30,
        ("redraft_time_to_first_token_seconds_count",): 3,
        ("redraft_inter_token_latency_seconds_count",): 63,
        ("redraft_inter_event_latency_seconds_count",): 27,
        ("redraft_request_duration_seconds_count",): 3,
        ("redraft_requests_running",): 2,
        ("redraft_requests_waiting",): 3,
        ("redraft_tokens_per_second",): 6.6,
        ("redraft_acceptance_length_mean",): 2.2,
    }
    assert {key: samples.get(key) for key in expected} == expected
    assert ("redraft_spec_accepted_tokens_per_pos_total", "3") not in samples


def test_what_the_engine_counts_is_shown_as_it_counts_it(serve, canned):
    server = serve(canned.engine())
    engine = server.service.engine
    names = ("kv_pages", "kv_pages_used", "kv_pages_kept")
    totals = ("preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total")
    for used, kept, *counts in ((0, 0, 0, 0, 0), (3, 2, 1, 700, 256), (0, 9, 1, 2**53 - 1, 256), (1, 0, 0, 5, 0)):
        preemptions, prompt, reused = counts
        engine.stats = EngineStats(1, 0, used, 9, kept, preemptions, prompt_tokens=prompt, reused_tokens=reused)
        for _ in range(2):
            _, samples = scrape(server)
            assert [samples[(f"redraft_{name}",)] for name in names] == [9, used, kept]
            assert [samples[(f"redraft_{name}",)] for name in totals] == counts


def test_rounds_are_counted_without_a_draft(serve, canned):
    server = serve(canned.scripted(lambda request: canned.rounds("abc", sizes=(1,), drafted=0)))
    server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"})
    _, samples = scrape(server)
    assert samples[("redraft_spec_rounds_total",)] == 4
    assert samples[("redraft_acceptance_length_sum",)] == 4
    assert samples[("redraft_spec_draft_tokens_total",)] == 0


def test_every_way_to_finish(serve, canned):
    server = serve(canned.engine("abc", finish=FinishReason.LENGTH))
    engine = server.service.engine
    good = {"model": "toy", "prompt": "hi"}
    assert server.http.post("/v1/completions", json=good).status_code == 200
    engine.script = lambda request: [canned.failure("boom")]
    assert server.http.post("/v1/completions", json=good).status_code == 500
    engine.script = lambda request: canned.rounds("abc")[:1]
    assert server.http.post("/v1/completions", json=good).status_code == 503
    engine.script = lambda request: [RoundOutput("x", finish_reason=FinishReason.CANCELLED)]
    assert server.http.post("/v1/completions", json=good).status_code == 503
    _, samples = scrape(server)
    assert samples[("redraft_requests_total", "length")] == 1
    assert samples[("redraft_requests_total", "error")] == 3


def test_openmetrics_on_request(serve, canned):
    reply = serve(canned.engine()).http.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")


def test_edges():
    assert tuple(range(1, 34)) == LENGTH_EDGES
    assert GAP_EDGES[0] == 0.0005
    assert list(GAP_EDGES) == sorted(GAP_EDGES)


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
        record.arrived(RoundOutput("x", tuple(range(tokens)), max(tokens - 1, 0), 6, prompt_seconds=0.2))
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
    metrics = record.metrics(max_nodes=4)
    assert metrics.time_to_first_token_ms == pytest.approx(500)
    assert metrics.queue_time_ms == pytest.approx(300)
    assert metrics.generation_time_ms == pytest.approx(420)
    assert metrics.mean_itl_ms == pytest.approx(84)
    assert metrics.tokens_per_second == pytest.approx(7 / 0.92)
    assert metrics.speculative_decoding.acceptance_histogram == [1, 1, 0, 1, 0]
    assert metrics.speculative_decoding.num_spec_tokens == 6


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
