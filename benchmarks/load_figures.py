"""From the records of a load to figures.  Definitions: docs/benchmarks.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from statistics import fmean, median
from typing import Any

from redraft.benchmarks.load_clients import Answer
from redraft.benchmarks.load_run import LevelRun, Pass, Record
from redraft.benchmarks.report import Figures, tau

PERCENTILES = (50, 90, 99)
SUMMED = ("requests", "errors", "tokens", "seconds")
"""Of all passes together; everything else is the median of the passes."""


def percentile(samples: Sequence[tuple[float, float]], percent: float) -> float | None:
    """The smallest value that ``percent`` % of the weight does not exceed (nearest rank); None of nothing.

    ``samples`` are values and their weights.
    """
    ordered = sorted(samples)
    wanted = math.fsum(weight for _, weight in ordered) * percent / 100
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        # sums of many weights miss what they should be by their last bits
        if reached >= wanted * (1 - 1e-9):
            return value
    return None


def level_figures(run: LevelRun) -> Figures | None:
    """A row of ``levels``: both sides, their ratio and whether they said the same; None if nothing was measured."""
    sides = {side: side_figures(passes) for side, passes in run.passes.items()}
    if not any(sides.values()):
        return None
    level = run.level
    load = {"concurrency": level.concurrency} if level.rate is None else {"rate": level.rate}
    plain, speculative = run.passes.get("plain", []), run.passes.get("speculative", [])
    same = _same(plain, speculative)
    return {
        **load,
        "requests": level.requests,
        "plain": sides.get("plain"),
        "speculative": sides.get("speculative"),
        # how fast an open loop goes is the arrivals' affair
        "speedup": _speedup(plain, speculative) if level.rate is None else None,
        "parity": fmean(same) if same else None,
        "compared": len(same),
    }


def side_figures(passes: Sequence[Pass]) -> Figures | None:
    """One side of a level; a pass that was cut short counts only where there is no whole one."""
    answered = [one for one in passes if any(record.answer for record in one.records)]
    counted = [one for one in answered if one.complete] or answered
    if not counted:
        return None
    rows = [pass_figures(one) for one in counted]
    return {
        **{name: _together(name, [row[name] for row in rows]) for name in rows[0] if name != "complete"},
        "event_tokens": _event_tokens(counted),
        "passes": rows,
    }


def pass_figures(one: Pass) -> Figures:
    """One pass; rates per second, times in seconds."""
    answered = [(record, record.answer) for record in one.records if record.answer is not None]
    answers = [answer for _, answer in answered]
    first, last = min(record.sent for record in one.records), max(answer.events[-1].at for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    ttft = [(answer.events[0].at - record.sent, 1.0) for record, answer in answered]
    gaps = [(after.at - before.at, after.tokens) for answer in answers for before, after in pairwise(answer.events)]
    alone = [rate for answer in answers if (rate := _own_rate(answer)) is not None]
    return {
        "complete": one.complete,
        "requests": len(answers),
        "errors": len(one.records) - len(answers),
        "tokens": tokens,
        "seconds": last - first,
        "tokens_per_second": tokens / (last - first),
        "steady_tokens_per_second": _steady(one),
        "per_user_tokens_per_second": fmean(alone) if alone else None,
        **_percentiles("ttft", ttft),
        # every token of an event has its share of the gap before it
        **_percentiles("itl", [(gap / count, count) for gap, count in gaps]),
        **_percentiles("event_gap", [(gap, 1.0) for gap, _ in gaps]),
        **_rounds(answers),
        "watts": one.watts,
    }


def _percentiles(name: str, samples: Sequence[tuple[float, float]]) -> Figures:
    return {f"{name}_p{percent}": percentile(samples, percent) for percent in PERCENTILES}


def _own_rate(answer: Answer) -> float | None:
    """Tokens per second that the one who asked saw, after the first event."""
    first, last = answer.events[0], answer.events[-1]
    return (answer.tokens - first.tokens) / (last.at - first.at) if last.at > first.at else None


def _rounds(answers: Sequence[Answer]) -> Figures:
    """τ and nodes, pooled over the rounds of the answers that tell of them."""
    known = [(answer.rounds, answer.drafted) for answer in answers if answer.rounds]
    pooled = [sum(column) for column in zip_longest(*(rounds for rounds, _ in known), fillvalue=0)]
    drafted = [nodes for _, nodes in known if nodes is not None]
    return {
        "tau": tau(pooled),
        "nodes_per_round": sum(drafted) / sum(pooled) if sum(pooled) and len(drafted) == len(known) else None,
    }


def _steady(one: Pass) -> float | None:
    """Tokens per second while every user was busy: from the last user's start until the first ran out of prompts.

    None in an open loop, for a pass that was cut short, and where there were fewer requests than users.
    """
    own: dict[int, list[Record]] = {}
    for record in one.records:
        own.setdefault(record.user, []).append(record)
    if not one.complete or len(own) != one.users:
        return None
    begin = max(min(record.sent for record in records) for records in own.values())
    end = min(max(record.ended for record in records) for records in own.values())
    if end <= begin:
        return None
    events = [event for record in one.records if record.answer is not None for event in record.answer.events]
    return sum(event.tokens for event in events if begin < event.at <= end) / (end - begin)


def _together(name: str, values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return sum(known) if name in SUMMED else median(known)


def _event_tokens(passes: Sequence[Pass]) -> str:
    answers = [record.answer for one in passes for record in one.records if record.answer is not None]
    return "counted" if all(answer.counted for answer in answers) else "spread"


def _speedup(plain: Sequence[Pass], speculative: Sequence[Pass]) -> float | None:
    """Median of the ratios of whole passes of the same number."""
    pairs = [pair for pair in zip(plain, speculative, strict=False) if all(one.complete for one in pair)]
    speeds = [[pass_figures(one)["tokens_per_second"] for one in pair] for pair in pairs]
    return median(fast / slow for slow, fast in speeds) if speeds else None


def _same(plain: Sequence[Pass], speculative: Sequence[Pass]) -> list[bool]:
    """For every request that was answered both ways in passes of the same number: whether the outputs are equal."""
    found = []
    for one, other in zip(plain, speculative, strict=False):
        said = {record.number: record.answer.units for record in one.records if record.answer is not None}
        found += [
            said[record.number] == record.answer.units
            for record in other.records
            if record.answer is not None and record.number in said
        ]
    return found
