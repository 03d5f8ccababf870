"""What a CUDA graph asks of the round, without one: replayed from the same declared state it does the same.

Declared are ``DeviceState`` and what a drafter was made with.  Between two runs another round dirties everything, and
all memory that is fresh in a run is filled with what nobody would take for a result.  That no value is read on the host
is test_round.py's and test_host_ops.py's; here shapes are looked at, op by op, for a captured graph has those of its
capture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redraft.drafts.base import Bounds, Candidates, Drafter, DraftState
from redraft.drafts.none import NoDrafter
from redraft.server.engine.adjusting import Stages
from redraft.server.engine.round import Plan

PLAN = Plan(rows=12, context_bound=140, requests=2, sampled=True, filtered=True)
BESIDE = replace(PLAN, rows=8, prefill=6, prefill_bound=140)
EVERYTHING = replace(
    PLAN,
    rows=16,
    stages=Stages(penalised=True, biased=True, minimum=True, ends=2),
    scored=2,
    tops=20,
    capped=True,
    forced=True,
    guided=True,
)
PLANS = pytest.mark.parametrize(
    "plan",
    [PLAN, BESIDE, EVERYTHING, replace(EVERYTHING, prefill=6, prefill_bound=140)],
    ids=["round", "with prefill", "everything asked", "everything with prefill"],
)
KINDS = ("none", "ngram", "dflash", "eagle3", "dflash+ngram", "twin-siblings")
OTHERS = ([3, 4, 5, 6] * 20, [100, 101] * 40), (70, 33)

pytestmark = pytest.mark.usefixtures("twins")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what differs in a byte."""
    assert a.keys() == b.keys()
    return [name for name, tensor in a.items() if tensor.numpy().tobytes() != b[name].numpy().tobytes()]


def dirty(setting: Any, plan: Plan) -> None:
    """A round from another state."""
    setting.fill(*OTHERS)
    setting.state.sampling.temperature.fill_(1.3)
    setting.run(plan, nullcontext())


def differing(setting: Any, plan: Plan, poisoned: Callable[..., AbstractContextManager[Any]]) -> list[str]:
    """What two rounds from one state left differently, with another in between and fresh memory spoilt in two ways."""
    setting.restore()
    first = setting.run(plan, poisoned())
    dirty(setting, plan)
    setting.restore()
    return same(first, setting.run(plan, poisoned(1e30, 1_000_003)))


@PLANS
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_carries_no_state_but_the_declared(
    kind: str,
    plan: Plan,
    make_setting: Callable[..., Any],
    poisoned: Callable[..., AbstractContextManager[Any]],
) -> None:
    setting = make_setting(kind)
    assert differing(setting, plan, poisoned) == []
    setting.restore()
    before = setting.state.length.clone()
    result = setting.run(plan, nullcontext())
    assert (setting.state.length > before).tolist() == [True, True, False, False]
    assert not any(tensor.isnan().any() for tensor in result.values() if tensor.is_floating_point())


@pytest.mark.parametrize(
    "less",
    [
        replace(EVERYTHING, stages=replace(EVERYTHING.stages, penalised=False)),
        replace(EVERYTHING, stages=replace(EVERYTHING.stages, biased=False)),
        replace(EVERYTHING, stages=replace(EVERYTHING.stages, minimum=False)),
        replace(EVERYTHING, scored=0),
        replace(EVERYTHING, capped=False),
        replace(EVERYTHING, forced=False),
        replace(EVERYTHING, guided=False),
    ],
    ids=["penalties", "bias", "min_tokens", "log-probabilities", "caps", "forced tokens", "grammars"],
)
def test_everything_that_is_asked_shows(less: Plan, make_setting: Callable[..., Any]) -> None:
    """Else what is asked would not be looked at above."""
    setting, results = make_setting("ngram"), []
    for plan in (EVERYTHING, less):
        setting.restore()
        committed, tree, scores, _ = setting.round(plan)
        values = (committed.tokens, committed.drafted, tree.token, *(() if scores is None else (scores.scores.value,)))
        results.append([value.tolist() for value in values])
    assert results[0] != results[1]


def test_siblings_are_accepted_off_the_spine(make_setting: Callable[..., Any]) -> None:
    """Else nothing would be compacted, and that much of the round not be looked at: depth 2 begins with node 3."""
    setting = make_setting("twin-siblings")
    setting.restore()
    committed = setting.round(PLAN).committed
    assert int(committed.count.max()) > 2


class Remembering(NoDrafter):
    """A drafter with a state that nobody knows of: it scores by how often it was asked."""

    def __init__(self) -> None:
        self.asked = torch.ones(())

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        self.asked += 1
        tree = super().propose(state, bounds)
        return Candidates(tree.token, tree.parent, tree.score * self.asked)


class Careless(NoDrafter):
    """A drafter that reads what it did not write."""

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        tree = super().propose(state, bounds)
        return Candidates(tree.token, tree.parent, torch.maximum(tree.score, torch.empty_like(tree.score)))


@pytest.mark.parametrize("drafter", [Remembering, Careless])
def test_the_check_notices_what_is_carried_along(
    drafter: type[Drafter],
    make_setting: Callable[..., Any],
    poisoned: Callable[..., AbstractContextManager[Any]],
) -> None:
    assert differing(make_setting(drafter()), PLAN, poisoned)


class Shapes(TorchDispatchMode):
    """Notes every op with the shapes and dtypes that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else (made,)
        what = tuple((tuple(t.shape), t.dtype) for t in tensors if isinstance(t, Tensor))
        self.seen.append((str(func), what))
        return made


def shapes(setting: Any, plan: Plan) -> tuple[list[Any], list[Any]]:
    """Of two rounds with one plan over different data."""
    setting.restore()
    one, two = Shapes(), Shapes()
    setting.run(plan, one)
    setting.fill(*OTHERS)
    setting.state.sampling.temperature.zero_()
    setting.state.active[1] = False
    setting.run(plan, two)
    return one.seen, two.seen


@PLANS
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_plan_runs_the_same_ops_on_the_same_shapes(
    kind: str, plan: Plan, make_setting: Callable[..., Any]
) -> None:
    one, two = shapes(make_setting(kind), plan)
    assert len(one) > 50
    assert one == two


class Choosy(NoDrafter):
    """A drafter whose work depends on what is active."""

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        state.tokens[state.active].sum()
        return super().propose(state, bounds)


def test_the_check_notices_shapes_that_follow_the_data(make_setting: Callable[..., Any]) -> None:
    one, two = shapes(make_setting(Choosy()), PLAN)
    assert one != two
