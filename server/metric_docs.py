"""docs/metrics.md, made from the table: ``python -m redraft.server.metric_docs > docs/metrics.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from redraft.server.metric_table import FINISHES, TABLE, Metric

HEAD = """# Metrics

<!-- made by `python -m redraft.server.metric_docs`; a test compares them -->

`GET /metrics`, in Prometheus' text format or OpenMetrics. `--metrics-names redraft|vllm|both` says under whose names;
both are shown by default, and count the same things once.

- Ours have the labels `model_name` and, where the table says so, `draft` (name and version of the draft). Those of vLLM
  have `model_name` and `engine`, which is always 0, and are summed over drafts.
- A *choice* is one answer to one prompt: a request with `n: 3` has three, each counted. A *round* commits tokens of
  one choice; one without a draft commits one, and counts too.
- Types, labels and edges under vLLM's names are vLLM 0.32's; further edges lie below its lowest ones, where a small
  model with speculation lives. Of tokens, edges end with the context length.
- Not there, for this server has nothing of the kind: LoRA, sleep levels, external caches, sampled life times of blocks,
  `corrupted_requests`.
- Of the limits in `redraft_limits_hit_total` vLLM knows one: `max_queue` is its reason `max_num_queued_reqs`.
- Acceptance length: `1 + rate(accepted) / rate(drafts)` under vLLM's names leaves out rounds that drafted nothing;
  `rate(redraft_acceptance_length_sum) / rate(redraft_acceptance_length_count)` has them all.
- Gaps: `inter_token_latency_seconds` is per token (a gap that brought four tokens counts four times, with a quarter
  each), `inter_event_latency_seconds` per event.
- Speed-up against plain decoding: `rate(redraft_plain_seconds_estimated_total)` by `rate(redraft_round_seconds_total)`.
  The estimate is what the engine's measured costs say of the same tokens without drafts.

"""


def page() -> str:
    """The whole page."""
    return "".join((HEAD, *_table(), *_edges()))


def _table() -> Iterator[str]:
    yield "| name | type | labels | vLLM's name | |\n| --- | --- | --- | --- | --- |\n"
    for metric in TABLE:
        labels = (*(("draft",) if metric.by_draft else ()), *metric.labels)
        yield (
            f"| `{ours(metric)}` | {metric.kind} | {', '.join(f'`{label}`' for label in labels)} "
            f"| {_theirs(metric)} | {metric.help} |\n"
        )
    ends = ", ".join(f"`{a}` is `{b}`" for a, b in FINISHES.items() if a != b)
    yield f"\nOf `finish_reason` and `finished_reason`, {ends}; the others are the same.\n"


def _edges() -> Iterator[str]:
    yield "\n## Edges\n\n"
    by_edges: dict[tuple[float, ...], list[str]] = {}
    for metric in TABLE:
        if metric.edges:
            by_edges.setdefault(metric.edges, []).append(f"`{ours(metric)}`")
    for edges, names in by_edges.items():
        yield f"- {', '.join(names)}: {' '.join(f'{edge:g}' if edge < 1e5 else str(edge) for edge in edges)}\n"


def ours(metric: Metric) -> str:
    """Our name as it is on the wire, but for a histogram's suffixes."""
    return f"redraft_{metric.name}{'_total' if metric.kind == 'counter' else ''}"


def _theirs(metric: Metric) -> str:
    if metric.vllm is None:
        return ""
    name = f"`vllm:{metric.vllm}{'_total' if metric.kind == 'counter' else ''}`"
    own = metric.labels if metric.vllm_labels is None else metric.vllm_labels
    return f"{name} ({', '.join(f'`{label}`' for label in own)})" if own else name


if __name__ == "__main__":
    sys.stdout.write(page())
