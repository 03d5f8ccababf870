"""The exposition of a canned run, number by number."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from redraft.server.engine.types import EngineStats, FinishReason, RoundOutput
from redraft.server.metric_table import (
    GAP_EDGES,
    LENGTH_EDGES,
    METRICS,
    REQUEST_EDGES,
    TABLE,
    TTFT_EDGES,
    VLLM_GAP,
    VLLM_REQUEST,
    VLLM_TTFT,
)
from redraft.server.metrics import Metrics

LABELS = {"model_name": "toy", "draft": "canned-1"}
UNKNOWN = {"round_rows", "iteration_tokens", "plain_seconds_estimated", "cost_per_million_tokens"}
"""What this engine tells nothing of."""


def scrape(server):
    """Families by name, and samples by name and extra labels; those under vLLM's names apart."""
    text = server.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples, theirs = {}, {}
    for family in families.values():
        is_ours = family.name.startswith("redraft_")
        if is_ours:
            own = LABELS if METRICS[family.name.removeprefix("redraft_")].by_draft else {"model_name": "toy"}
        else:
            own = {"model_name": "toy", "engine": "0"}
        for sample in family.samples:
            assert {name: value for name, value in sample.labels.items() if name in {*own, *LABELS}} == own
            extra = tuple(value for name, value in sample.labels.items() if name not in own)
            (samples if is_ours else theirs)[(sample.name, *extra)] = sample.value
    return families, samples, theirs


def test_a_canned_run(serve, canned):
    # 22 tokens in rounds of 1, 3, 2, 4, 1, 3, 2, 4, 1, 1
    server = serve(canned.engine("Hello, wörld! 日本語"))
    for body in ({"n": 2}, {"stream": True}):
        assert server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi", **body}).status_code == 200
    families, samples, theirs = scrape(server)
    shown = [metric for metric in TABLE if metric.name != "price_per_hour"]
    assert {name: (family.type, bool(family.documentation)) for name, family in families.items() if family.samples} == {
        name: (metric.kind, True) for metric in shown for name in _names(metric) if metric.name not in UNKNOWN
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
    expected = {
        ("vllm:spec_decode_num_drafts_total",): 30,
        ("vllm:spec_decode_num_draft_tokens_total",): 120,
        ("vllm:spec_decode_num_accepted_tokens_total",): 36,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "0"): 18,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "1"): 12,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "2"): 6,
        ("vllm:prompt_tokens_total",): 6,
        ("vllm:generation_tokens_total",): 66,
        ("vllm:request_success_total", "stop"): 3,
        ("vllm:request_success_total", "abort"): 0,
        ("vllm:request_success_total", "length"): 0,
        ("vllm:request_success_total", "error"): 0,
        ("vllm:time_to_first_token_seconds_count",): 3,
        ("vllm:inter_token_latency_seconds_count",): 63,
        ("vllm:request_generation_tokens_bucket", "20.0"): 0,
        ("vllm:request_generation_tokens_bucket", "50.0"): 3,
        ("vllm:num_requests_running",): 2,
        ("vllm:num_requests_waiting",): 3,
        ("vllm:num_requests_waiting_by_reason", "capacity"): 3,
        ("vllm:kv_cache_usage_perc",): 0,
        ("vllm:cache_config_info", "128", "0"): 1,
    }
    assert {key: theirs.get(key) for key in expected} == expected
    assert samples["redraft_spec_accepted_tokens_per_pos_total", "3"] == 0
    assert ("redraft_spec_accepted_tokens_per_pos_total", "4") not in samples


def test_the_first_reading_has_the_counts_of_the_draft_that_is_served(serve, canned):
    _, samples, theirs = scrape(serve(canned.engine()))
    counts = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    assert {key: value for key, value in theirs.items() if key[0].startswith("vllm:spec_decode")} == {
        **{(f"vllm:spec_decode_{name}_total",): 0 for name in counts},
        **{("vllm:spec_decode_num_accepted_tokens_per_pos_total", str(position)): 0 for position in range(4)},
    }
    assert samples["redraft_spec_rounds_total",] == samples["redraft_acceptance_length_count",] == 0
    assert theirs["vllm:time_to_first_token_seconds_count",] == 0


def test_an_engine_that_is_loading_has_no_draft_to_show():
    registry = CollectorRegistry()
    Metrics(registry, "toy", served=lambda: None)
    assert not [sample for family in registry.collect() for sample in family.samples if "draft" in sample.labels]


def _names(metric):
    return [f"redraft_{metric.name}", *([f"vllm:{metric.vllm}"] if metric.vllm is not None else [])]


def test_what_the_engine_counts_is_shown_as_it_counts_it(serve, canned):
    server = serve(canned.engine())
    engine = server.service.engine
    names = ("kv_pages", "kv_pages_used", "kv_pages_kept")
    totals = ("preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total")
    for used, kept, *counts in ((0, 0, 0, 0, 0), (3, 2, 1, 700, 256), (0, 9, 1, 2**53 - 1, 256), (1, 0, 0, 5, 0)):
        preemptions, prompt, reused = counts
        engine.stats = EngineStats(1, 0, used, 9, kept, preemptions, prompt_tokens=prompt, reused_tokens=reused)
        for _ in range(2):
            _, samples, theirs = scrape(server)
            assert theirs[("vllm:kv_cache_usage_perc",)] == samples[("redraft_kv_usage",)] == used / 9
            assert theirs[("vllm:num_preemptions_total",)] == preemptions
            assert theirs[("vllm:prefix_cache_hits_total",)] == reused
            assert [samples[(f"redraft_{name}",)] for name in names] == [9, used, kept]
            assert [samples[(f"redraft_{name}",)] for name in totals] == counts


def test_rounds_are_counted_without_a_draft(serve, canned):
    server = serve(canned.scripted(lambda request: canned.rounds("abc", sizes=(1,), drafted=0)))
    server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"})
    _, samples, _ = scrape(server)
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
    _, samples, _ = scrape(server)
    assert samples[("redraft_requests_total", "length")] == 1
    assert samples[("redraft_requests_total", "error")] == 3


@pytest.mark.parametrize("version", ["", ";version=1.0.0", ";version=1.0.0;escaping=underscores"])
def test_openmetrics_on_request(serve, canned, version):
    server = serve(canned.engine())
    server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"})
    accept = f"application/openmetrics-text{version},text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    reply = server.http.get("/metrics", headers={"Accept": accept})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")
    assert re.search(r'^vllm:generation_tokens_total\{engine="0",model_name="toy"\} 22.0$', reply.text, re.MULTILINE)
    assert "vllm_" not in reply.text
    plain = server.http.get("/metrics").text
    lines = {line for line in plain.splitlines() if not line.startswith("#") and "http_responses" not in line}
    assert {line for line in lines if "seconds" not in line} <= set(reply.text.splitlines())


def test_edges():
    assert tuple(range(1, 34)) == LENGTH_EDGES
    for edges in (metric.edges for metric in TABLE):
        assert list(edges) == sorted(set(edges))
    for edges, vllm in ((TTFT_EDGES, VLLM_TTFT), (GAP_EDGES, VLLM_GAP), (REQUEST_EDGES, VLLM_REQUEST)):
        assert set(vllm) < set(edges)
        assert min(edges) <= 0.001


@pytest.mark.parametrize("names", ["redraft", "vllm", "both"])
def test_whose_names(serve, canned, names):
    server = serve(canned.engine("abc"), metrics_names=names, price_per_hour=7.2)
    server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"})
    families, samples, theirs = scrape(server)
    assert bool(samples) == (names != "vllm")
    assert bool(theirs) == (names != "redraft")
    assert {name.partition("_")[0].partition(":")[0] for name in families} == (
        {"redraft", "vllm"} if names == "both" else {names}
    )
    if samples:
        # four tokens within the last ten seconds
        assert samples[("redraft_price_per_hour",)] == 7.2
        assert samples[("redraft_cost_per_million_tokens",)] == pytest.approx(7.2 / 3600 / 0.4 * 1e6)


def test_vllms_names_sum_over_drafts_and_lengths_end_with_the_context():
    registry = CollectorRegistry()
    metrics = Metrics(registry, "toy")
    metrics.exposition.context = 64
    for draft, tokens in (("one", 3), ("two", 40), ("two", 900)):
        recorder = metrics.recorder(draft)
        recorder.generation(tokens)
        recorder.observe("request_generation_tokens", tokens)
        recorder.finished("cancelled", 1.0)

    def value(name, **labels):
        return registry.get_sample_value(name, {"model_name": "toy", **labels})

    assert value("redraft_generation_tokens_total", draft="two") == 940
    assert value("vllm:generation_tokens_total", engine="0") == 943
    assert value("vllm:request_success_total", engine="0", finished_reason="abort") == 3
    name = "vllm:request_generation_tokens"
    assert value(f"{name}_sum", engine="0") == 943
    buckets = {le: value(f"{name}_bucket", engine="0", le=le) for le in ("2.0", "5.0", "50.0", "100.0", "+Inf")}
    assert buckets == {"2.0": 0, "5.0": 1, "50.0": 2, "100.0": None, "+Inf": 3}


def test_limits_are_counted_from_zero_on():
    registry = CollectorRegistry()
    metrics = Metrics(registry, "toy")
    metrics.announce_limits(["max_queue", "request_timeout"])
    metrics.limit_hit("max_queue")

    def value(name, **labels):
        return registry.get_sample_value(name, {"model_name": "toy", **labels})

    assert value("redraft_limits_hit_total", limit="max_queue") == 1
    assert value("redraft_limits_hit_total", limit="request_timeout") == 0
    assert value("vllm:admission_rejections_total", engine="0", reason="max_num_queued_reqs") == 1
    assert value("vllm:admission_rejections_total", engine="0", reason="request_timeout") is None
