"""No op of a pass has to do with the host: it makes no tensor of values there and waits for none of the device's.

On a GPU such an op waits for all that was launched before it, the target's pass included (staging.py).  FakeTensorMode
(test_round.py) sees what reads; this sees what is made as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from redraft.server.engine import round as round_module
from redraft.server.engine.adjusting import Stages
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.round import Plan
from redraft.server.engine.scores import round_scores

OF_THE_HOST = {"aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero"}
"""Tensors made of lists, numbers that are read, and shapes that follow data."""
PLAN = Plan(rows=12, context_bound=140, requests=2, sampled=True, filtered=True)
PLANS = {
    "round": PLAN,
    "everything asked of logits": replace(PLAN, stages=Stages(True, True, True), capped=True),
    "scores of some": replace(PLAN, scored=1, tops=3),
    "scores of all": replace(PLAN, rows=4, scored=2, tops=20),
    "guided": replace(PLAN, forced=True, guided=True),
    "with prefill": replace(PLAN, rows=8, prefill=6, prefill_bound=140, scored=1, tops=2),
}

pytestmark = pytest.mark.usefixtures("twins")


class HostOps(TorchDispatchMode):
    """Notes such ops, but not of twins: on a GPU a kernel has their place."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in OF_THE_HOST and not _stands_in_for_a_kernel():
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def _stands_in_for_a_kernel() -> bool:
    frame: Any = sys._getframe()
    while frame is not None and not frame.f_code.co_name.endswith("_twin"):
        frame = frame.f_back
    return frame is not None


def host_ops(setting: Any, plan: Plan) -> list[str]:
    """Those of a round, and of scores of the prompt that is prefilled beside it."""
    setting.state.adjusting.reserve()
    with HostOps() as mode:
        setting.round(plan, (Chunk(2, 0, 5, scored=3),) if plan.prefill else ())
    return mode.seen


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("kind", ["none", "ngram", "eagle3", "dflash+ngram"])
def test_a_round_has_none(kind: str, plan: Plan, make_setting: Callable[..., Any]) -> None:
    assert host_ops(make_setting(kind), plan) == []


def test_slots_that_come_from_a_list_in_the_middle_are_noticed(
    make_setting: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(logits: Any, choice: Any, committed: Any, slots: Any, top: int) -> Any:
        return round_scores(logits, choice, committed, torch.tensor([0, 1]), top)

    monkeypatch.setattr(round_module, "round_scores", careless)
    assert host_ops(make_setting("none"), PLANS["scores of all"]) == ["aten::lift_fresh"]
