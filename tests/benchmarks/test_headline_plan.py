"""The plan of the comparison: arms differ in what their name says alone; and the pace that ends each in time."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import cast

import pytest

from redraft.benchmarks.headline import pace as module
from redraft.benchmarks.headline.pace import PROBE, RESERVE, Pace
from redraft.benchmarks.headline.plan import TRUNK, Choices, arms
from redraft.drafts.training.flops import Flops
from redraft.drafts.training.opd_settings import OpdSettings
from redraft.drafts.training.run import Progress, Run
from redraft.drafts.training.settings import RunSettings, SftSettings

ARMS = {arm.name: arm for arm in arms(Choices())}
LONGEST = 10**9
DIFFERS = {
    "draft-opd": set[str](),
    "opd-trajectory": {"suffix_teacher"},
    "opd-no-suffix": {"suffix_teacher"},
    "opd-correction": {"correction"},
    "opd-pooled": {"aggregate", "correction"},
    "opd-hard": {"suffix_teacher", "correction", "hard"},
    "opd-forward": {"suffix_teacher", "correction", "hard", "rejected_kl"},
    "opd-tv": {"loss", "suffix_teacher"},
    "opd-scalar": {"loss", "aggregate", "correction"},
    "opd-no-decay": {"gamma"},
    "opd-all-forward": {"rejected_kl"},
    "opd-all-reverse": {"accepted_kl"},
    "opd-random-anchors": {"anchors"},
    "opd-naive": {"rejected_weight", "correction"},
    "opd-reached": {"rejected_weight", "correction", "hard"},
    "opd-reached-random": {"rejected_weight", "correction", "hard", "anchors"},
}


def differing(one: RunSettings, other: RunSettings) -> set[str]:
    ours, theirs = asdict(one), asdict(other)
    return {name for name in ours if ours[name] != theirs[name]}


def test_on_policy_arms_differ_from_the_papers_in_what_they_are_named_after() -> None:
    found = {
        name: differing(arm.settings, ARMS["draft-opd"].settings)
        for name, arm in ARMS.items()
        if isinstance(arm.settings, OpdSettings)
    }
    assert found == DIFFERS


def test_papers_arm_has_the_papers_loss() -> None:
    defaults = OpdSettings(suffix_teacher="draft")
    shared = {"rate", "steps", "decay_share", "batch", "micro_batch", "max_length", "warmup"}
    assert differing(ARMS["draft-opd"].settings, defaults) <= shared


def test_branches_have_one_start_one_budget_and_one_schedule() -> None:
    branches = [arm for name, arm in ARMS.items() if name not in (TRUNK, "eagle3")]
    assert {arm.start for arm in branches} == {TRUNK}
    assert {arm.budget(7.0, 3.0) for arm in branches} == {3.0}
    shared = ("batch", "max_length", "optimiser", "rate", "weight_decay", "clip", "warmup", "decay_share", "seed")
    assert len({tuple(getattr(arm.settings, name) for name in shared) for arm in branches}) == 1


def test_sft_arm_is_the_trunk_gone_on_with_until_the_rate_has_fallen() -> None:
    assert differing(ARMS["dflash-sft"].settings, ARMS[TRUNK].settings) == {"rate", "decay_share"}
    assert ARMS[TRUNK].settings.decay_share == 0 < ARMS["dflash-sft"].settings.decay_share


def test_eagle3_starts_from_nothing_with_the_operations_of_trunk_and_arm() -> None:
    assert ARMS["eagle3"].start == ARMS[TRUNK].start == ""
    assert (ARMS[TRUNK].budget(7.0, 3.0), ARMS["eagle3"].budget(7.0, 3.0)) == (7.0, 10.0)


def test_what_others_start_from_comes_first() -> None:
    names = list(ARMS)
    assert all(names.index(arm.start) < names.index(arm.name) for arm in ARMS.values() if arm.start)


class FakeRun:
    """Of a run, what its pace looks at."""

    def __init__(self, steps: int = LONGEST, decay_share: float = 0.4) -> None:
        self.settings = SftSettings(steps=steps, warmup=2, decay_share=decay_share)
        self.progress = Progress(0)

    def at(self, step: int, flops: int) -> None:
        self.progress.step, self.progress.flops = step, Flops(draft=flops)


def paced(run: FakeRun, budget: float, until: float = float("inf")) -> Pace:
    return Pace(cast(Run, run), budget, until)


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_steps_follow_what_a_step_has_cost_so_far() -> None:
    run = FakeRun()
    pace = paced(run, 1000)
    run.at(PROBE - 1, 30)
    pace()
    assert run.settings.steps == LONGEST
    run.at(PROBE, 40)
    pace()
    assert run.settings.steps == 100
    run.at(10, 200)
    pace()
    assert run.settings.steps == 50


def test_time_limit_shortens_the_arm_while_its_decay_can_still_move(clock: Clock) -> None:
    run = FakeRun()
    pace = paced(run, 1000, until=100.0)
    run.at(PROBE, 40)
    pace()
    assert run.settings.steps == 100
    clock.now = 32.0
    run.at(PROBE + 16, 200)  # two seconds a step
    pace()
    assert run.settings.steps == 20 + (100 - RESERVE - 32) / 2 == 50
    schedule = run.settings.schedule
    assert schedule.decay == 20
    assert schedule(29) == 1.0 > schedule(35) > schedule(49) > 0


def test_end_stays_once_the_decay_has_begun_unless_time_runs_out(clock: Clock) -> None:
    run = FakeRun(steps=50)
    pace = paced(run, 1000, until=100.0)
    run.at(29, 290)  # operations for 100 steps
    pace()
    assert run.settings.steps == 100, "before the decay the end moves"
    run.at(70, 1400)  # operations for 50 only
    clock.now = 20.0
    pace()
    assert run.settings.steps == 100, "the decay goes on as it began"
    run.at(72, 1440)
    clock.now = 91.0
    pace()
    assert run.settings.steps == 73, "no time is left"


@pytest.mark.parametrize("decay_share", [0.0, 0.4])
def test_finished_run_stays_finished(decay_share: float) -> None:
    run = FakeRun(50, decay_share)
    run.at(50, 100)  # a twentieth of the budget
    paced(run, 2000)()
    assert run.settings.steps == 50
