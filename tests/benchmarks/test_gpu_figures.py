"""Figures read out of the suite's stages: none of the issue's is absent, and what is not known says why."""

from __future__ import annotations

from typing import Any

import pytest

from redraft.benchmarks.gpu_figures import FIGURES, figures_table, gpu_figures
from redraft.benchmarks.peers import KEPT, STATIC

GSM8K = "target given, speculative, GSM8K"
MEAN = "target given, speculative, mean of GSM8K, HumanEval, MT-Bench"
AGAINST_PEER = "target given, plain against transformers with static cache and compile"
REST = "neither products nor attention, Qwen3-8B shape"
TOKENS = "speculative against plain, batch {}: tokens that differ"


def step(shape: str, rows: int, seconds: float, memory: float) -> dict[str, Any]:
    return {
        "shape": shape,
        "requests": 1,
        "rows": rows,
        "seconds": seconds,
        "memory_seconds": memory,
        "predicted_seconds": memory + 0.0005,
        "share_of_bandwidth": memory / seconds,
    }


def of_set(plain: float, speculative: float) -> dict[str, Any]:
    return {
        "alone": {"plain_tokens_per_second": plain, "tokens_per_second": speculative},
        "expected": {
            "plain": {"floor": 2 * plain, "predicted": plain + 100},
            "speculative": {"floor": 2 * speculative, "predicted": speculative + 200},
        },
    }


def equality(prompts: int, tokens: int, **differing: int) -> dict[str, Any]:
    way = {"requests": prompts, "tokens_that_differ": 0, "requests_that_differ": 0, "caches_that_differ": 0}
    ways = {
        "speculative, batch 1": way,
        "speculative, batch 16": way | differing,
        "speculative, batch 16, T = 0.8": way,
    }
    return {
        "name": "equality",
        "checks": [{"ok": True}, {"ok": False}],
        "ways": ways,
        "prompts": prompts,
        "max_tokens": tokens,
    }


STAGES: list[dict[str, Any]] = [
    {
        "name": "steps",
        "steps": [
            {"shape": "Qwen3-1.7B", "failed": "out of memory", "requests": 1, "rows": 1},
            step("Qwen3-8B", 1, 0.005, 0.0045),
            step("Qwen3-8B", 16, 0.0054, 0.0045),
            step("Qwen3-8B", 64, 0.0055, 0.0045),
        ],
    },
    {
        "name": "rounds",
        "rounds": [
            {
                "shape": "Qwen3-8B",
                "requests": 1,
                "rows": 16,
                "rest_share": 0.04,
                "memory_rest_share": 0.001,
                "predicted_rest_share": 0.02,
            }
        ],
    },
    {"name": "bandwidth", "copy_bytes_per_second": 3e12},
    {
        "name": "speed",
        "weight_bytes": 3e8,
        "sets": {
            "gsm8k": of_set(2500.0, 7000.0),
            "human-eval": of_set(2400.0, 4000.0),
            "MT_Bench": of_set(2300.0, 3000.0),
        },
    },
    {
        "name": "peers",
        "ours": {"plain": {"tokens_per_second": 2000.0}},
        "peers": {STATIC: {"tokens_per_second": 400.0}, KEPT: {"tokens_per_second": 500.0}},
        "predicted_ratio": 1.4,
    },
    equality(200, 256, tokens_that_differ=7, requests_that_differ=1),
]


def test_what_was_not_measured_is_null_and_says_why() -> None:
    figures = gpu_figures([{"name": "kernels", "checks": []}, {"name": "peers", "skipped": "no time left"}])
    assert set(figures) == set(FIGURES)
    assert all(figure["value"] is figure["met"] is None for figure in figures.values())
    assert all(figure["reason"] for figure in figures.values())
    assert "was not run" in figures[REST]["reason"]
    assert "no time left" in figures[AGAINST_PEER]["reason"]
    assert figures_table(figures).count("not measured") == len(FIGURES)


def test_every_figure_of_the_table() -> None:
    figures = gpu_figures(STAGES)
    kept = ("value", "unit", "goal", "met", "floor", "predicted")
    assert all(set(kept) <= set(figure) for figure in figures.values())
    found = {name: tuple(figure[key] for key in kept if key != "unit") for name, figure in figures.items()}
    near = pytest.approx
    assert found == {
        "plain decoding, Qwen3-8B shape": (near(0.9), 0.85, True, 1.0, near(0.9)),
        "plain decoding, Qwen3-1.7B shape": (None, 0.65, None, 1.0, None),
        "verify of 16 rows, Qwen3-8B shape": (near(1.08), 1.06, False, 1.0, 1.0),
        "verify of 64 rows, Qwen3-8B shape": (near(1.1), 1.20, True, 1.0, 1.0),
        REST: (0.04, 0.05, True, 0.001, 0.02),
        "target given, plain": (2400.0, 2000, True, 10000.0, 2500.0),
        # the faster of the two ways counts
        AGAINST_PEER: (4.0, 4, True, None, 1.4),
        GSM8K: (7000.0, 6000, True, 14000.0, 7200.0),
        "target given, speculative against plain, GSM8K": (near(2.8), None, None, near(2.8), near(7200 / 2600)),
        MEAN: (near(14000 / 3), 4500, True, near(28000 / 3), near(14600 / 3)),
        "target given, speculative against plain, mean of GSM8K, HumanEval, MT-Bench": (
            near(14000 / 7200),
            None,
            None,
            near(14000 / 7200),
            near(14600 / 7500),
        ),
        TOKENS.format(1): (0.0, 0, True, 0.0, 0.0),
        "speculative against plain, batch 1: requests that differ": (0.0, 0, True, 0.0, 0.0),
        "speculative against plain, batch 1: caches that differ": (0.0, 0, True, 0.0, 0.0),
        TOKENS.format(16): (7.0, 0, False, 0.0, 0.0),
        "speculative against plain, batch 16: requests that differ": (1.0, 0, False, 0.0, 0.0),
        "speculative against plain, batch 16: caches that differ": (0.0, 0, True, 0.0, 0.0),
        **{
            f"speculative against plain, batch 16, T = 0.8: {what} that differ": (0.0, 0, True, 0.0, 0.0)
            for what in ("tokens", "requests", "caches")
        },
        "checks of equality that failed": (1.0, 0, False, 0.0, 0.0),
    }
    assert "failed, out of memory" in figures["plain decoding, Qwen3-1.7B shape"]["reason"]
    assert "2,400 tokens/s (goal 2,000, floor 10,000, predicted 2,500) met" in figures_table(figures)


def test_a_mean_of_three_needs_three() -> None:
    stages = [{"name": "speed", "weight_bytes": 1.0, "sets": {"gsm8k": of_set(2500.0, 7000.0)}}]
    figures = gpu_figures(stages)
    assert figures[GSM8K]["met"] is True
    assert figures[MEAN]["value"] is None
    assert "humaneval" in figures[MEAN]["reason"]


def test_too_few_tokens_prove_nothing_but_a_difference() -> None:
    name = TOKENS.format(16)
    few = gpu_figures([equality(8, 64)])[name]
    assert (few["value"], few["met"], few["reason"]) == (0.0, None, "8 x 64 compared, not 200 x 256")
    wrong = gpu_figures([equality(8, 64, tokens_that_differ=1)])[name]
    assert (wrong["value"], wrong["met"]) == (1.0, False)


def test_a_peer_that_failed_is_no_measure() -> None:
    peers = {STATIC: {"failed": "RuntimeError: no"}, KEPT: {"skipped": "no time left"}}
    stage = {"name": "peers", "ours": {"plain": {"tokens_per_second": 1.0}}, "peers": peers, "predicted_ratio": None}
    found = gpu_figures([stage])[AGAINST_PEER]
    assert found["value"] is found["predicted"] is None
    assert "RuntimeError: no" in found["reason"]
    assert "no time left" in found["reason"]
