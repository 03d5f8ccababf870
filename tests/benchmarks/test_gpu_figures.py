"""Figures read out of the suite's stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redraft.benchmarks.gpu_figures import FIGURES, figures_table, gpu_figures
from redraft.benchmarks.step_speed import Case, Steps
from redraft.benchmarks.tiny import make_tiny_target
from redraft.kernels.attention import cpu_attention
from redraft.server.engine.target.spec import read_spec


def step(shape: str, rows: int, seconds: float, memory: float, plain: float) -> dict[str, object]:
    return {
        "shape": shape,
        "requests": 1,
        "rows": rows,
        "seconds": seconds,
        "memory_seconds": memory,
        "predicted_seconds": memory + 0.0005,
        "share_of_bandwidth": memory / seconds,
        "against_plain": seconds / plain,
    }


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    figures = gpu_figures([{"name": "kernels", "checks": []}])
    assert set(figures) == set(FIGURES)
    assert all(figure["value"] is figure["met"] is None for figure in figures.values())
    assert figures_table(figures).count("not measured") == len(FIGURES)


def test_figures_of_a_run() -> None:
    steps = [
        step("Qwen3-8B", 1, 0.005, 0.0045, 0.005),
        step("Qwen3-8B", 16, 0.0054, 0.0045, 0.005),
        step("Qwen3-8B", 64, 0.0055, 0.0045, 0.005),
        {"shape": "Qwen3-1.7B", "failed": "out of memory", "requests": 1, "rows": 1},
    ]
    figures = gpu_figures(
        [
            {"name": "steps", "steps": steps},
            {"name": "bandwidth", "copy_bytes_per_second": 3e12},
            {
                "name": "speed",
                "weight_bytes": 3e8,
                "alone": {"plain_tokens_per_second": 2500.0, "tokens_per_second": 5000.0},
                "plain_step": {"predicted_milliseconds": 0.5},
            },
            {"name": "peers", "peers": {"transformers, static cache and compile": {"tokens_per_second": 500.0}}},
            {"name": "equality", "checks": [{"ok": True}, {"ok": False}]},
        ]
    )
    found = {name: (figure["value"], figure["met"], figure["floor"]) for name, figure in figures.items()}
    assert found == {
        "plain decoding, Qwen3-8B shape": (pytest.approx(0.9), True, None),
        "plain decoding, Qwen3-1.7B shape": (None, None, None),
        "verify of 16 rows, Qwen3-8B shape": (pytest.approx(1.08), False, 1.0),
        "verify of 64 rows, Qwen3-8B shape": (pytest.approx(1.1), True, 1.0),
        "target given, plain": (2500.0, True, 10000.0),
        "target given, speculative": (5000.0, False, None),
        "target given, plain against transformers with static cache and compile": (5.0, True, None),
        "checks of equality that failed": (1.0, False, None),
    }
    predicted = {name: figure["predicted"] for name, figure in figures.items() if figure["predicted"] is not None}
    assert predicted == {
        "plain decoding, Qwen3-8B shape": pytest.approx(0.9),
        "verify of 16 rows, Qwen3-8B shape": 1.0,
        "verify of 64 rows, Qwen3-8B shape": 1.0,
        "target given, plain": 2000.0,
    }
    assert "goal 2000, floor 1e+04, predicted 2e+03) met" in figures_table(figures)


def test_rounds_of_wrong_drafts_commit_one_token_each(tmp_path: Path) -> None:
    """Or the measured rounds would not be what they are taken for."""
    steps = Steps(read_spec(make_tiny_target(tmp_path)), torch.device("cpu"), torch.float32, cpu_attention)
    assert steps.seconds(Case(2, 4), steps=2) > 0
    assert steps.committed.count.tolist() == [1, 1, 0]
    assert steps.committed.drafted.tolist() == [3, 3, 0]
    assert steps.committed.accepted.tolist() == [0, 0, 0]
