"""What the runs say together: whether they may be compared, how they differ, whether SFT had anything left to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from redraft.benchmarks.headline.bootstrap import Difference, difference, pooled
from redraft.benchmarks.headline.plan import TRUNK
from redraft.benchmarks.headline.runs import Result, Trained

REFERENCE = "dflash-sft"
"""The arm that all are compared with: more of what the trunk had."""
ALL = "all"
"""Every prompt of every set."""
SAME = 0.02
"""Operations that differ by less count as equal."""
LAST = 0.3
"""Share of the operations, at the end, in which a draft that has plateaued gains nothing ..."""
FLAT = 0.01
"""... that is, less than this of its τ."""
AROUND = 0.1
"""Share of the operations whose measurements are taken together."""

Key = tuple[str, float, str]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Of one arm on one set (or ``ALL``), and against ``REFERENCE`` where that has the same answers."""

    tau: float
    against: Difference | None


def named(runs: Sequence[Trained], name: str) -> Trained | None:
    """The run of that name, if it is there."""
    return next((run for run in runs if run.name == name), None)


def acceptances(runs: Sequence[Trained]) -> dict[str, dict[Key, Acceptance]]:
    """By arm, then by set, temperature and shape; ``ALL`` comes last and is there if there are several sets."""
    reference = named(runs, REFERENCE)
    theirs = {} if reference is None else _grouped(reference)
    found: dict[str, dict[Key, Acceptance]] = {}
    for run in runs:
        found[run.name] = {
            key: Acceptance(
                pooled(results), difference(results, theirs[key]) if run is not reference and key in theirs else None
            )
            for key, results in _grouped(run).items()
        }
    return found


def _grouped(run: Trained) -> dict[Key, list[Result]]:
    groups = {result.key: [result] for result in run.results}
    if len({result.set for result in run.results}) > 1:
        for result in run.results:
            groups.setdefault((ALL, result.temperature, result.shape), []).append(result)
    return groups


def operations(runs: Sequence[Trained]) -> tuple[bool, list[str]]:
    """Whether all arms spent equal operations, and in words who did not.

    Arms of one trunk are compared by what they spent after it, others by everything since their first weights.
    """
    reference = named(runs, REFERENCE)
    compared = [run for run in runs if run.name != TRUNK]
    if reference is None:
        return False, [f"{REFERENCE} is not among the runs: nothing can be compared with it."]
    wrong = []
    for run in compared:
        branches = run.before.flops > 0
        spent, wanted = (one.spent.flops if branches else one.total.flops for one in (run, reference))
        if abs(spent / wanted - 1) > SAME:
            part = "after the trunk" if branches else "in all"
            wrong.append(
                f"{run.name} {tflop(spent)} TFLOP {part}, {spent / wanted:.0%} of {REFERENCE}'s {tflop(wanted)}"
            )
    if not wrong:
        return True, [f"Operations are equal: every arm is within {SAME:.0%} of {REFERENCE}."]
    return False, [f"OPERATIONS ARE NOT EQUAL: {'; '.join(wrong)}. Differences in τ are differences in cost too."]


def starts(runs: Sequence[Trained]) -> list[str]:
    """In words, if the arms did not go on from the same weights."""
    versions = {run.name: run.card["before"].get("version") for run in runs if run.card.get("before")}
    if len(set(versions.values())) < 2:
        return []
    told = ", ".join(f"{name} from {version}" for name, version in versions.items())
    return [f"THE ARMS DO NOT START FROM THE SAME WEIGHTS: {told}."]


def plateau(runs: Sequence[Trained]) -> tuple[bool | None, str]:
    """Whether SFT had stopped to gain, trunk and arm taken together, and in words by how much."""
    trunk, reference = named(runs, TRUNK), named(runs, REFERENCE)
    if trunk is None or reference is None or not trunk.points or not reference.points:
        return None, f"Whether SFT had plateaued cannot be told without measured runs of {TRUNK} and {REFERENCE}."
    alone = [(point.cost.flops, point.tau) for point in trunk.points]
    curve = alone + [(reference.before.flops + point.cost.flops, point.tau) for point in reference.points]
    change, told = _change(curve, settled=True)
    verdict = (
        "SFT still gained, so this is no plateau, and tells nothing of a draft that SFT no longer improves"
        if change > FLAT
        else "SFT got worse"
        if change < -FLAT
        else f"a plateau, the change being below {FLAT:.0%}"
    )
    _, constant = _change(alone)
    # the decay of the rate by itself lifts τ, at any time
    return abs(change) <= FLAT, (
        f"Plateau of {REFERENCE}: {told}, trunk and arm together, the fall of the rate included: {verdict}. "
        f"The trunk alone, at a constant rate: {constant}."
    )


def _change(curve: Sequence[tuple[float, float]], settled: bool = False) -> tuple[float, str]:
    """Relative change of τ over the last ``LAST`` of the operations, from the last measurements before them.

    At a constant rate single measurements scatter by more than ``FLAT``, so those of ``AROUND`` of the operations are
    taken together; ``settled``: the last one is taken as it is, behind a rate that has fallen.
    """
    end = curve[-1][0]
    begin = max((x for x, _ in curve if x <= (1 - LAST) * end), default=curve[0][0])

    def around(place: float) -> list[float]:
        return [y for x, y in curve if place - AROUND * end < x <= place]

    first, last = fmean(around(begin)), curve[-1][1] if settled else fmean(around(end))
    change = last / first - 1
    told = f"dev τ {first:.3f} → {last:.3f} ({change:+.1%}) over the last {1 - begin / end:.0%} of operations"
    return change, f"{told} ({tflop(begin)} to {tflop(end)} TFLOP)"


def tflop(flops: float) -> str:
    """Without the unit."""
    return f"{flops / 1e12:.0f}" if flops >= 1e13 else f"{flops / 1e12:.3g}"
