"""AIPerf prints its section on speculation and stores our metrics, and both say what our own counts say."""

from __future__ import annotations

import json
import os
import re
import shutil
from itertools import pairwise
from typing import Any

import pytest

AIPERF = os.environ.get("AIPERF") or shutil.which("aiperf")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(AIPERF is None, reason="AIPerf is not installed (PyPI: aiperf); AIPERF names its program"),
]
REQUESTS, TOKENS = 6, 48


def table(printed: str, title: str) -> dict[str, str]:
    """Names and averages of the table under ``title``, and what the line below it says."""
    lines = iter(printed.splitlines())
    assert any(title in line for line in lines), printed[-3000:]
    found = {}
    for line in lines:
        if line.startswith("│"):
            name, average, *_ = (cell.strip() for cell in line.strip("│").split("│"))
            if average:  # else it goes on with a name that was too long
                found[re.sub(r" \(.*", "", name)] = average
        elif below := re.match(r" *(Accepted drafts per step) \(% of steps\): +(.*)", line):
            found[below[1]] = below[2].strip()
            break
    return found


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_its_section_and_its_export_say_what_our_counts_say(served: Any, stream: bool) -> None:
    words = [AIPERF, "profile", "--url", served.url, "--endpoint-type", "chat", "--model", "tiny"]
    words += ["--tokenizer", served.target, "--isl", "40", "--osl", str(TOKENS), "--request-count", str(REQUESTS)]
    words += ["--concurrency", "2", "--random-seed", "1", "--ui", "none", "--output-artifact-dir", "artifacts"]
    words += ["--extra-inputs", "include_metrics:true", "--extra-inputs", "temperature:0"]
    words += ["--extra-inputs", "ignore_eos:true", *(["--streaming"] if stream else [])]
    printed = served.run(words)
    counts = served.counts()
    assert counts.generated == REQUESTS * TOKENS
    assert counts.accepted > 0
    found = table(printed, "Spec Decode")
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    # a reply's steps are rounds, those that drafted nothing included; its draft's counts are those of /metrics
    assert found["Token-Weighted Acceptance Length"] == f"{1 + counts.accepted / counts.rounds:.2f}"
    assert found["Overall Draft Acceptance Rate"] == f"{counts.accepted / counts.drafted * 100:.2f}"
    assert found["Spec Decode Steps"] == f"{counts.rounds / REQUESTS:.2f}"
    # rounds that accepted just so many: those that accepted so many at least, less those that accepted more
    least = [counts.rounds, *counts.positions, 0]
    shares = [(here - more) / counts.rounds * 100 for here, more in pairwise(least)]
    while not shares[-1]:
        shares.pop()
    told = re.findall(r"(\d+): (\d+)%", found["Accepted drafts per step"])
    assert told == [(str(accepted), f"{share:.0f}") for accepted, share in enumerate(shares)]
    exported = json.loads((served.folder / "artifacts/server_metrics_export.json").read_text())["metrics"]
    stored = {
        (name.removeprefix("vllm:spec_decode_num_"), series["labels"].get("position")): series["stats"]["total"]
        for name, metric in exported.items()
        if name.startswith("vllm:spec_decode")
        for series in metric["series"]
    }
    assert stored == {
        ("drafts", None): counts.drafts,
        ("draft_tokens", None): counts.drafted,
        ("accepted_tokens", None): counts.accepted,
        **{("accepted_tokens_per_pos", str(position)): accepted for position, accepted in enumerate(counts.positions)},
    }
