"""Launches of a round on a GPU, counted without one: whoever adds an op to a round sees what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch._subclasses.fake_tensor import FakeTensor

from redraft.benchmarks.launches import CPU, count_launches, default_draft
from redraft.benchmarks.shapes import TARGETS
from redraft.benchmarks.traffic import OUTSIDE, target_pass
from redraft.kernels.attention_partial import tickets
from redraft.kernels.matmul import workspace

pytest.importorskip("triton")
SPEC = TARGETS["SmolLM2-135M"]
LAYER = 5
"""Norm and projections with rotation and cells, attention, output, gate and up, down."""


def test_a_plain_step() -> None:
    # beside the layers: trees, rows, their cells, embedding, attention's list of items, head, sampling, acceptance
    found = count_launches(SPEC, None)
    assert found["kernels.matmul"] == 4 * SPEC.layers + 1
    assert sum(found.values()) == LAYER * SPEC.layers + 11 == target_pass(SPEC, 1, [512], 2).launches + OUTSIDE


@pytest.mark.parametrize("sampled", [False, True])
def test_a_speculative_round(sampled: bool) -> None:
    draft = default_draft()
    found = count_launches(SPEC, draft, sampled=sampled)
    assert sum(found.values()) == LAYER * (SPEC.layers + draft.config.layers) + 27 + sampled
    # torch's own ops are the target's embedding and the taps, side by side, and the index that noise begins at
    ours = {name for name in found if not name.startswith("kernels.")}
    assert ours == {"server.engine.target.decoder"} | ({"drafts.dflash"} if sampled else set())


def test_nothing_without_contents_is_left_behind() -> None:
    count_launches(replace(SPEC, layers=1), None)
    assert not any(isinstance(one, FakeTensor) for one in (*workspace(CPU), tickets(CPU)))


def test_layers_are_what_counts() -> None:
    few, many = (sum(count_launches(replace(SPEC, layers=layers), None).values()) for layers in (2, 3))
    assert many - few == LAYER
