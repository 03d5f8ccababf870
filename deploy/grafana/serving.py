"""The dashboard *Serving*: what clients get, and what limits it."""

from __future__ import annotations

from panels import Json, dashboard, heat, lines, number, query


def _quantiles(name: str) -> list[tuple[str, str]]:
    buckets = f"sum by (le) (rate(redraft_{name}_bucket{{DRAFT}}[$__rate_interval]))"
    return [query(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)]


def _mean(name: str, legend: str) -> tuple[str, str]:
    total = f"sum(rate(redraft_{name}_sum{{DRAFT}}[$__rate_interval]))"
    return query(f"{total} / sum(rate(redraft_{name}_count{{DRAFT}}[$__rate_interval]))", legend)


def _rate(name: str, by: str, legend: str) -> tuple[str, str]:
    return query(f"sum by ({by}) (rate(redraft_{name}_total{{DRAFT}}[$__rate_interval]))", legend)


def _responses(status: str, legend: str) -> tuple[str, str]:
    """Answers of a class; 0 where there was none yet."""
    expr = f'sum(rate(redraft_http_responses_total{{MODEL, status=~"{status}"}}[$__rate_interval])) or vector(0)'
    return query(expr, legend)


PANELS: list[Json] = [
    lines(
        "Tokens per second",
        "Made, and of prompts whose prefill ended; prompt tokens that were found computed are included.",
        "short",
        _rate("generation_tokens", "model_name, draft", "made {{model_name}} {{draft}}"),
        _rate("prompt_tokens", "model_name, draft", "prompts {{model_name}} {{draft}}"),
    ),
    lines(
        "Time to first token",
        "From submission; waiting for a slot included.",
        "s",
        *_quantiles("time_to_first_token_seconds"),
    ),
    lines(
        "Inter-token latency",
        "Per token: the gap before an event divided by the tokens that it brought.",
        "s",
        *_quantiles("inter_token_latency_seconds"),
        _mean("inter_token_latency_seconds", "mean"),
    ),
    lines(
        "Inter-event latency",
        "Between two events of a stream, however many tokens they bring: what a reader sees as stutter.",
        "s",
        *_quantiles("inter_event_latency_seconds"),
    ),
    lines(
        "Running and waiting",
        "Choices being decoded, and those that wait for a slot or for KV.",
        "short",
        query("sum by (model_name) (redraft_requests_running{DRAFT})", "running {{model_name}}"),
        query("sum by (model_name) (redraft_requests_waiting{DRAFT})", "waiting {{model_name}}"),
    ),
    lines(
        "KV pages",
        "Share of the pages that running choices hold, and of those kept for prompts that begin the same.",
        "percentunit",
        query("redraft_kv_usage{DRAFT}", "held {{instance}}"),
        query("redraft_kv_pages_kept{DRAFT} / redraft_kv_pages{DRAFT}", "kept {{instance}}"),
    ),
    lines(
        "Prefix reuse",
        "Share of prompt tokens whose KV was there already.",
        "percentunit",
        query(
            "sum by (model_name) (rate(redraft_prefix_cache_hits_total{DRAFT}[$__rate_interval])) / "
            "sum by (model_name) (rate(redraft_prefix_cache_queries_total{DRAFT}[$__rate_interval]))",
            "{{model_name}}",
        ),
    ),
    lines(
        "Preemptions per second",
        "Choices that gave up their KV to an older one and have to be prefilled again.",
        "short",
        _rate("preemptions", "instance", "{{instance}}"),
    ),
    lines(
        "Ends per second",
        "Choices that ended, by how: at a stop, at their length, cancelled by the client, or by an error.",
        "short",
        _rate("requests", "finish_reason", "{{finish_reason}}"),
        stack=True,
    ),
    lines(
        "Errors per second",
        "Answers with status 4xx (the request is at fault, or the client left: 499) and 5xx (the server is).",
        "short",
        _responses("4..", "4xx"),
        _responses("5..", "5xx"),
    ),
    lines(
        "Refused or ended by limits per second",
        "By the limit that was hit: the queue was full, a request took too long, its client did not read.",
        "short",
        query("sum by (limit) (rate(redraft_limits_hit_total{MODEL}[$__rate_interval])) or vector(0)", "{{limit}}"),
    ),
    lines("Request duration", "From submission to the end.", "s", *_quantiles("request_duration_seconds")),
    lines(
        "Where the time goes",
        "Means of requests that ended: waiting for a slot, prefill, decoding.",
        "s",
        _mean("request_queue_seconds", "queue"),
        _mean("request_prefill_seconds", "prefill"),
        _mean("request_decode_seconds", "decode"),
        stack=True,
    ),
    heat(
        "Tokens of a pass",
        "Prefilled and committed tokens of the engine's passes; colour is passes per second.",
        "short",
        query("sum by (le) (rate(redraft_iteration_tokens_bucket{DRAFT}[$__rate_interval]))", "{{le}}"),
    ),
    heat(
        "Prompt lengths",
        "Tokens of the prompts of choices that ended; colour is choices per second.",
        "short",
        query("sum by (le) (rate(redraft_request_prompt_tokens_bucket{DRAFT}[$__rate_interval]))", "{{le}}"),
    ),
    heat(
        "Reply lengths",
        "Tokens of choices that ended; colour is choices per second.",
        "short",
        query("sum by (le) (rate(redraft_request_generation_tokens_bucket{DRAFT}[$__rate_interval]))", "{{le}}"),
    ),
    number(
        "Engines",
        "How many live, and how many of them take requests.",
        "short",
        query("sum(redraft_engine_up{MODEL})", "up"),
        query("sum(redraft_engine_ready{MODEL})", "ready"),
    ),
]
SERVING = dashboard("redraft-serving", "Redraft: Serving", "What clients get, and what limits it.", PANELS)
