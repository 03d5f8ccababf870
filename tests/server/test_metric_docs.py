"""The page on metrics is the table's."""

from __future__ import annotations

from pathlib import Path

from redraft.server.metric_docs import ours, page
from redraft.server.metric_table import METRICS, TABLE


def test_the_page_is_up_to_date(repository: Path) -> None:
    assert (repository / "docs" / "metrics.md").read_text() == page()


def test_every_metric_is_on_it() -> None:
    assert len(METRICS) == len(TABLE)
    theirs = [metric.vllm for metric in TABLE if metric.vllm is not None]
    assert len(set(theirs)) == len(theirs)
    for metric in TABLE:
        assert f"| `{ours(metric)}` | {metric.kind} |" in page()
        assert metric.help.endswith(".")
