"""What is sampled under speculation follows the target's distribution: chi-squared against enumeration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.drafts.adversarial import RandomTreeDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import Request, SamplingParams

KEEP = 3
DRAWS = 1200
# 0.999 quantiles of chi-squared: a correct sampler fails once in a thousand choices of seeds, and the seeds are fixed
CRITICAL = {2: 13.82, 8: 26.12}


@pytest.mark.parametrize("draft", ["tree", "none"])
def test_two_sampled_tokens_follow_the_target(
    draft: str, random_target: Callable[[str], Path], bench: Any, make_rows: Any
) -> None:
    folder, prompt, temperature = random_target("llama"), [5, 17, 99, 5], 0.7
    b = bench(folder)

    def next_tokens(text: list[int]) -> dict[int, float]:
        """Enumerated: the KEEP likeliest tokens and their probabilities at the temperature."""
        logits = b.target.logits(b.run(make_rows([(0, 0, text, None)])))[-1].float()
        values, ids = (logits / temperature).topk(KEEP)
        return dict(zip(ids.tolist(), values.softmax(-1).tolist(), strict=True))

    expected = {
        (first, second): p * q
        for first, p in next_tokens(prompt).items()
        for second, q in next_tokens([*prompt, first]).items()
    }

    config = EngineConfig(
        str(folder),
        "tiny",
        "0",
        draft="none",
        dtype="fp32",
        device="cpu",
        max_num_seqs=32,
        max_num_batched_tokens=256,
        self_check=False,
        measure_costs=False,
    )
    # drafts that are often right: trees over a text that holds likely tokens
    likely = [*prompt, *max(expected, key=lambda pair: expected[pair]), *prompt]
    reference = torch.tensor([likely] * 33)
    drafter = RandomTreeDrafter(reference, 331, 5) if draft == "tree" else None
    engine = build_engine(config, drafter)
    counts: Counter[tuple[int, ...]] = Counter()
    accepted = 0
    texts: dict[str, list[int]] = {}
    for seed in range(DRAWS):
        params = SamplingParams(max_tokens=2, temperature=temperature, top_k=KEEP, seed=seed)
        engine.submit(Request(str(seed), tuple(prompt), params))
    while engine.busy:
        for output in engine.step().outputs:
            texts.setdefault(output.request_id, []).extend(output.tokens)
            accepted += output.accepted
    counts.update(tuple(text) for text in texts.values())
    assert set(counts) <= set(expected)
    assert (accepted > DRAWS // 20) == (draft == "tree")
    pairs = sum((counts[pair] - DRAWS * p) ** 2 / (DRAWS * p) for pair, p in expected.items())
    assert pairs < CRITICAL[KEEP * KEEP - 1]
    firsts = Counter(first for first, _ in counts.elements())
    marginal = next_tokens(prompt)
    assert sum((firsts[t] - DRAWS * p) ** 2 / (DRAWS * p) for t, p in marginal.items()) < CRITICAL[KEEP - 1]
