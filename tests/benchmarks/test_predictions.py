"""The GPU suite's figures as predicted without a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from redraft.benchmarks.gpu_figures import gpu_figures
from redraft.benchmarks.launches import NODES
from redraft.benchmarks.predict import predicted_prefill, predicted_round, predicted_step
from redraft.benchmarks.predict_speed import Answers, Drafting, bound_of_peer, expected_speed
from redraft.benchmarks.predictions import SETS, main, predicted_stages, table
from redraft.benchmarks.shapes import TARGETS, draft_shape

pytest.importorskip("triton")
SPEED = 4.2e12
SPEC = TARGETS["SmolLM2-135M"]
DRAFTING = Drafting(draft_shape(SPEC), True, NODES, 2 * NODES)


def test_every_figure_that_shapes_decide_is_predicted() -> None:
    stages = predicted_stages(SPEED, dict.fromkeys(SETS, 4.0), 128, 256)
    figures = gpu_figures(stages)
    assert all(figure["value"] is None and figure["reason"] for figure in figures.values())
    assert [name for name, figure in figures.items() if figure["predicted"] is None] == []
    # bytes can be moved no faster than at the copy's speed
    assert 0.5 < figures["plain decoding, Qwen3-1.7B shape"]["predicted"] < 1
    assert 1 < figures["verify of 64 rows, Qwen3-8B shape"]["predicted"] < 1.2
    shown = table(stages)
    assert "Qwen3-8B         16 round" in shown
    assert "target given, speculative, GSM8K" in shown


def test_faster_memory_makes_launches_count_more() -> None:
    slow, fast = (
        gpu_figures(predicted_stages(speed, dict.fromkeys(SETS, 4.0), 128, 256)) for speed in (SPEED, 2 * SPEED)
    )
    for name, less in (
        ("plain decoding, Qwen3-8B shape", True),
        ("neither products nor attention, Qwen3-8B shape", False),
        ("target given, speculative, GSM8K", False),
    ):
        assert (fast[name]["predicted"] < slow[name]["predicted"]) is less


def test_answers_are_a_prefill_and_their_rounds() -> None:
    answers = Answers(prompt=100, tokens=200.0, tau=4.0)
    found = expected_speed(SPEC, DRAFTING, answers, 2, SPEED)
    assert answers.context == found["context"] == 200
    prefill = predicted_prefill(SPEC, 100, 2).seconds(SPEED)
    step = predicted_step(SPEC, 1, 1, 200, 2, read_back=True).seconds(SPEED)
    whole = predicted_round(
        SPEC, DRAFTING.config, 1, 31, 200, 2, nodes=15, accepted=3.0, read_back=True
    ).seconds(SPEED)  # fmt: skip
    assert prefill is not None
    assert step is not None
    assert whole is not None
    assert found["plain"]["predicted"] == pytest.approx(200 / (prefill + 200 * step))
    assert found["speculative"]["predicted"] == pytest.approx(200 / (prefill + 50 * whole))
    assert found["plain"]["floor"] > found["plain"]["predicted"]
    assert found["rows"] == 31


def test_a_draft_that_is_not_counted_is_not_predicted() -> None:
    for drafting, tau in ((None, 4.0), (DRAFTING, None)):
        found = expected_speed(SPEC, drafting, Answers(100, 200.0, tau), 2, SPEED)
        assert found["speculative"] == {"floor": None, "predicted": None}
        assert found["plain"]["predicted"] > 0


def test_a_peer_launches_more_and_reads_as_much() -> None:
    few = bound_of_peer(SPEC, 256, 2, SPEED)
    deep = bound_of_peer(replace(SPEC, layers=60), 256, 2, SPEED)
    large = bound_of_peer(TARGETS["Qwen3-8B"], 256, 2, SPEED)
    assert few is not None
    assert deep is not None
    assert large is not None
    assert 1 < large < few < deep < 8 / 5


def test_the_command_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["predictions", "--bandwidth", "3e12", "--tau", "4", "3", "2"])
    main()
    slow = capsys.readouterr().out
    assert "plain decoding, Qwen3-8B shape" in slow
    monkeypatch.setattr(sys, "argv", ["predictions", "--bandwidth", "6e12", "--tau", "4", "3", "2"])
    main()
    assert capsys.readouterr().out != slow
