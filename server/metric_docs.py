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

CLIENTS = """
## With vLLM's and NVIDIA's benchmark clients

Neither knows of Redraft. `vllm bench serve` reads `/metrics` before its requests and after them; its section on
speculation is the difference. One prompt a line, `{"prompt": "Explain in three sentences why the sky is blue."}`:

```sh
vllm bench serve --backend openai-chat --base-url http://127.0.0.1:8000 --endpoint /v1/chat/completions \\
  --model smollm2-135m --tokenizer ~/.cache/redraft/targets/smollm2-135m-b179c952-v1 \\
  --dataset-name custom --dataset-path prompts.jsonl --custom-output-len 96 --num-prompts 12 \\
  --max-concurrency 2 --temperature 0 --disable-tqdm
```

ends, by vLLM 0.32, with

```text
---------------Speculative Decoding---------------
Acceptance rate (%):                     23.66
Acceptance length:                       2.08
Drafts:                                  242
Draft tokens:                            1103
Accepted tokens:                         261
Per-position acceptance (%):
  Position 0:                            55.79
  Position 1:                            25.21
  Position 2:                            13.64
  Position 3:                            5.37
  Position 4:                            3.31
  Position 5:                            2.48
  Position 6:                            2.07
==================================================
```

AIPerf's section is made of the replies' own `metrics.speculative_decoding`, so it has to ask for them; `/metrics` goes
into `server_metrics_export.json` beside it. Prompts are `{"text": ...}` here:

```sh
aiperf profile --url http://127.0.0.1:8000 --endpoint-type chat --streaming --model smollm2-135m \\
  --tokenizer ~/.cache/redraft/targets/smollm2-135m-b179c952-v1 \\
  --input-file prompts-aiperf.jsonl --custom-dataset-type single_turn --request-count 12 --concurrency 2 \\
  --extra-inputs include_metrics:true --extra-inputs max_completion_tokens:96 --extra-inputs temperature:0 --ui none
```

prints, by AIPerf 0.13, among other things

```text
┃                            Metric ┃   avg ┃   min ┃   max ┃   p99 ┃   p90 ┃   p50 ┃   std ┃
│         Acceptance Length (ratio) │  1.86 │  1.06 │  3.00 │  2.99 │  2.84 │  1.70 │  0.71 │
│  Token-Weighted Acceptance Length │  1.64 │   N/A │   N/A │   N/A │   N/A │   N/A │   N/A │
│         Draft Acceptance Rate (%) │ 35.05 │ 13.04 │ 66.67 │ 65.38 │ 54.94 │ 30.75 │ 16.22 │
│ Overall Draft Acceptance Rate (%) │ 37.73 │   N/A │   N/A │   N/A │   N/A │   N/A │   N/A │
│     Accepted per Verified (ratio) │  0.63 │  0.44 │  0.83 │  0.83 │  0.81 │  0.63 │  0.11 │
│         Spec Decode Steps (count) │ 47.50 │ 22.00 │ 87.00 │ 87.00 │ 84.00 │ 42.50 │ 20.23 │
  Accepted drafts per step (% of steps):  0: 71%   1: 14%   2: 5%   3: 3%   4: 4%   5: 1%   6: 0%   7: 0%
```

- Both are right and differ: vLLM's length is by rounds that drafted, AIPerf's by all rounds, of which many draft
  nothing on a busy CPU. Both count a bonus token for every round, also where the reply ended before it: the first
  run's 363 rounds accepted 261 tokens and committed 619, not 624.
- AIPerf with `HF_HUB_OFFLINE` set takes no folder as `--tokenizer`.
- `make peers` installs both and holds what they print against `redraft_*`.
"""


def page() -> str:
    """The whole page."""
    return "".join((HEAD, *_table(), *_edges(), CLIENTS))


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
