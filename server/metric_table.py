"""Every metric there is: name, type, labels, edges, unit and help.

The collector, docs/metrics.md and the checks of dashboards and alerts are made from this table, so a metric exists
nowhere else.  vLLM's names, labels and edges are those of its 0.32 (``vllm/v1/metrics/loggers.py`` there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from redraft.server.engine.types import PASS_EDGES

Kind = Literal["counter", "gauge", "histogram"]

FINE = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075)
"""Seconds below vLLM's lowest edges, where a small model with speculation lives."""
VLLM_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
    *(160, 640, 2560),
)
VLLM_GAP = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
VLLM_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TTFT_EDGES = tuple(sorted({*FINE, *VLLM_TTFT}))
GAP_EDGES = (*FINE, *VLLM_GAP)
REQUEST_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, *VLLM_REQUEST)
TOKEN_EDGES = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
"""Shown up to the context length."""
LENGTH_EDGES = tuple(range(1, 34))
MEAN_EDGES = (*(1 + step / 4 for step in range(12)), 4, 4.5, 5, 5.5, 6, 7, 8, 10, 12, 16, 24, 32)

FINISHES = {"stop": "stop", "length": "length", "cancelled": "abort", "error": "error"}
"""Our words for how a choice ended, and vLLM's."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One quantity, under our name and perhaps under vLLM's."""

    name: str
    """Ours, without ``redraft_`` and without a counter's ``_total``."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Besides ``model_name`` and, where ``by_draft``, ``draft``."""
    edges: tuple[float, ...] = ()
    """Upper edges of a histogram's buckets, the infinite one left out."""
    unit: str = "short"
    """As Grafana names it."""
    by_draft: bool = True
    to_context: bool = False
    """Edges beyond the context length are left out."""
    vllm: str | None = None
    """vLLM's name, without ``vllm:`` and without a counter's ``_total``; labels besides ``model_name``, ``engine``."""
    vllm_labels: tuple[str, ...] | None = None
    """In place of ``labels``."""
    vllm_values: Mapping[str, str] | None = field(default=None, hash=False)
    """Of the last label: our value to vLLM's; what is not here has none."""


def counter(name: str, text: str, *labels: str, vllm: str | None = None, unit: str = "short") -> Metric:
    """A counter by draft."""
    return Metric(name, "counter", text, labels, unit=unit, vllm=vllm)


def gauge(name: str, text: str, *labels: str, vllm: str | None = None, unit: str = "short") -> Metric:
    """A gauge by draft."""
    return Metric(name, "gauge", text, labels, unit=unit, vllm=vllm)


def seconds(name: str, text: str, edges: tuple[float, ...] = REQUEST_EDGES, vllm: str | None = None) -> Metric:
    """A histogram of seconds by draft."""
    return Metric(name, "histogram", text, edges=edges, unit="s", vllm=vllm)


def tokens(name: str, text: str) -> Metric:
    """A histogram of tokens of a request, under the same name as vLLM's."""
    return Metric(name, "histogram", text, edges=TOKEN_EDGES, to_context=True, vllm=name)


TABLE: tuple[Metric, ...] = (
    # speculation
    counter("spec_rounds", "Rounds that committed tokens, per choice, those that drafted nothing included."),
    counter("spec_drafts", "Rounds that verified drafted nodes, per choice.", vllm="spec_decode_num_drafts"),
    counter("spec_draft_tokens", "Drafted nodes that were verified.", vllm="spec_decode_num_draft_tokens"),
    counter(
        "spec_draft_tokens_by_origin",
        "Drafted nodes that were verified, by who proposed them: the draft, or a grammar that left no choice.",
        "origin",
    ),
    counter(
        "spec_accepted_tokens",
        "Drafted tokens that were accepted, bonus tokens not counted.",
        vllm="spec_decode_num_accepted_tokens",
    ),
    counter(
        "spec_accepted_tokens_per_pos",
        "Drafted tokens accepted, by 0-based position on the path.",
        "position",
        vllm="spec_decode_num_accepted_tokens_per_pos",
    ),
    Metric(
        "acceptance_length",
        "histogram",
        "Tokens committed per round, the bonus token included.",
        edges=LENGTH_EDGES,
    ),
    Metric(
        "request_acceptance_length",
        "histogram",
        "Mean tokens per round of each choice that ended.",
        edges=MEAN_EDGES,
    ),
    Metric(
        "round_rows",
        "histogram",
        "Rows that a round verified for all requests together, padding and prefill left out.",
        edges=PASS_EDGES,
    ),
    counter(
        "round_seconds",
        "Seconds that rounds took, by the device's clock; on a GPU without those that compile or are recorded.",
        unit="s",
    ),
    counter(
        "plain_seconds_estimated",
        "Seconds that the same tokens would have taken without drafts, by the engine's measured costs.",
        unit="s",
    ),
    gauge("acceptance_length_mean", "Tokens per round, over the last 10 s."),
    gauge("draft_info", "1, for the draft that is served and the most nodes that it proposes.", "max_nodes"),
    # tokens
    counter("prompt_tokens", "Prompt tokens whose prefill ended, once per choice.", vllm="prompt_tokens"),
    counter("prompt_tokens_cached", "Of these, tokens whose KV was there already.", vllm="prompt_tokens_cached"),
    counter(
        "prompt_tokens_by_source",
        "The same prompt tokens, by whether they were computed or found.",
        "source",
        vllm="prompt_tokens_by_source",
    ),
    counter("generation_tokens", "Tokens made, up to each choice's finish.", vllm="generation_tokens"),
    gauge("tokens_per_second", "Tokens made, over the last 10 s."),
    Metric(
        "iteration_tokens",
        "histogram",
        "Tokens of a pass: prefilled and committed.",
        edges=PASS_EDGES,
        vllm="iteration_tokens_total",
    ),
    Metric("price_per_hour", "gauge", "What the server costs in an hour, as the operator said.", by_draft=False),
    gauge("cost_per_million_tokens", "At that price, of tokens made over the last 10 s."),
    # requests
    gauge("requests_running", "Choices being decoded.", vllm="num_requests_running"),
    gauge("requests_waiting", "Choices waiting for a slot.", vllm="num_requests_waiting"),
    gauge(
        "requests_waiting_by_reason",
        "Choices waiting, by what for; here always capacity.",
        "reason",
        vllm="num_requests_waiting_by_reason",
    ),
    Metric(
        "requests",
        "counter",
        "Choices that ended.",
        ("finish_reason",),
        vllm="request_success",
        vllm_labels=("finished_reason",),
        vllm_values=FINISHES,
    ),
    Metric(
        "http_responses",
        "counter",
        "Answers, by route and status; a stream counts when it ends, 499 is a client that left.",
        ("path", "status"),
        by_draft=False,
    ),
    Metric(
        "limits_hit",
        "counter",
        "Requests that a limit of the server refused or ended.",
        ("limit",),
        by_draft=False,
        vllm="admission_rejections",
        vllm_labels=("reason",),
        vllm_values={"max_queue": "max_num_queued_reqs"},
    ),
    tokens("request_prompt_tokens", "Prompt tokens of each choice that ended."),
    tokens("request_generation_tokens", "Tokens made for each choice that ended."),
    tokens("request_params_max_tokens", "Most tokens that each choice might have."),
    tokens("request_max_num_generation_tokens", "Tokens of the longest choice of each prompt."),
    tokens("request_prefill_kv_computed_tokens", "Prompt tokens of each choice whose KV had to be computed."),
    Metric(
        "request_params_n",
        "histogram",
        "Choices asked for, of each prompt.",
        edges=(1, 2, 5, 10, 20),
        vllm="request_params_n",
    ),
    # latency
    seconds(
        "time_to_first_token_seconds",
        "From submission to the first token.",
        TTFT_EDGES,
        "time_to_first_token_seconds",
    ),
    seconds(
        "inter_token_latency_seconds",
        "Per token: the gap before an event divided by its tokens.",
        GAP_EDGES,
        "inter_token_latency_seconds",
    ),
    seconds("inter_event_latency_seconds", "Between two events that brought tokens, however many each.", GAP_EDGES),
    seconds(
        "request_time_per_output_token_seconds",
        "Mean of each choice: time from the first token to the last by the tokens between.",
        GAP_EDGES,
        "request_time_per_output_token_seconds",
    ),
    seconds("request_duration_seconds", "From submission to the end.", vllm="e2e_request_latency_seconds"),
    seconds("request_queue_seconds", "From submission to a slot.", vllm="request_queue_time_seconds"),
    seconds("request_prefill_seconds", "From a slot to the first token.", vllm="request_prefill_time_seconds"),
    seconds("request_decode_seconds", "From the first token to the last.", vllm="request_decode_time_seconds"),
    seconds("request_inference_seconds", "From a slot to the last token.", vllm="request_inference_time_seconds"),
    # KV and the engine
    gauge("kv_pages", "Pages of KV that there are."),
    gauge("kv_pages_used", "Pages of KV that running choices hold."),
    gauge("kv_pages_kept", "Pages of KV that nobody holds, kept for prompts that begin the same."),
    gauge("kv_usage", "Share of the pages that running choices hold.", vllm="kv_cache_usage_perc", unit="percentunit"),
    Metric(
        "kv_info",
        "gauge",
        "1, for the size of a page in tokens and the number of pages.",
        ("page_tokens", "pages"),
        vllm="cache_config_info",
        vllm_labels=("block_size", "num_gpu_blocks"),
    ),
    counter(
        "preemptions",
        "Times a choice gave up its KV to an older one and had to wait again.",
        vllm="num_preemptions",
    ),
    counter("out_of_memory", "Passes that failed for want of device memory."),
    gauge("server_tasks", "Tasks of the server's own process, those of connections included."),
    counter("prefix_cache_queries", "Prompt tokens of choices that were admitted.", vllm="prefix_cache_queries"),
    counter("prefix_cache_hits", "Of these, tokens whose KV was there already.", vllm="prefix_cache_hits"),
    Metric("engine_up", "gauge", "1 while the engine's process lives, 0 once it has ended.", by_draft=False),
    Metric("engine_ready", "gauge", "1 while the engine takes requests, 0 while it is loading.", by_draft=False),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in TABLE}
