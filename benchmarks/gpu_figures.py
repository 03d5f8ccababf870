"""The figures that the GPU suite is after, read out of its stages: value, goal, floor by bytes, and what was predicted.

A figure that could not be had says why: it is null with a reason, never absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redraft.benchmarks.figure_sources import (
    Missing,
    Stages,
    against_compiled,
    bandwidth_over_weights,
    checks_failed,
    compared,
    mismatches,
    of_round,
    of_sets,
    of_step,
    ratio,
    slowest_peer,
    step_ratio,
)

Source = Callable[[Stages], float | None]
SETS = ("gsm8k", "humaneval", "mtbench")


def _nothing(stages: Stages) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: how it is found, and what it has to reach."""

    unit: str
    goal: float | None
    """None for one that is told beside another."""
    value: Source
    """Raises ``Missing`` where it was not measured."""
    floor: Source = _nothing
    """The best that the bytes to be moved allow, in the same unit."""
    predicted: Source = _nothing
    """What bytes and launches together allow (predict.py): from shapes, before anything is measured."""
    at_most: bool = False
    """Whether less is better."""
    note: str | None = None
    enough: Callable[[Stages], str | None] = _nothing
    """Why too little was measured to say that the goal is met."""


def _share(shape: str, goal: float) -> Figure:
    predicted = ratio(of_step(shape, 1, "memory_seconds"), of_step(shape, 1, "predicted_seconds"))
    return Figure("of the copy bandwidth", goal, of_step(shape, 1, "share_of_bandwidth"), lambda stages: 1.0, predicted)


def _verify(shape: str, rows: int, goal: float) -> Figure:
    measured, floor, predicted = (
        step_ratio(shape, rows, key) for key in ("seconds", "memory_seconds", "predicted_seconds")
    )
    return Figure("plain steps", goal, measured, floor, predicted, at_most=True)


def _rest(shape: str, goal: float) -> Figure:
    value, floor, predicted = (
        of_round(shape, 16, key) for key in ("rest_share", "memory_rest_share", "predicted_rest_share")
    )
    note = "the round less its products and attention alone, by rounds of one request with 16 rows"
    return Figure("of the round", goal, value, floor, predicted, at_most=True, note=note)


TAU_NOTE = "predicted of tokens per answer and round as this run had them; what they take is not of this run"


def _speculative(names: Sequence[str], goal: float) -> Figure:
    floor, predicted = (of_sets(names, "expected", "speculative", key) for key in ("floor", "predicted"))
    return Figure("tokens/s", goal, of_sets(names, "alone", "tokens_per_second"), floor, predicted, note=TAU_NOTE)


def _speedup(names: Sequence[str]) -> Figure:
    floor, predicted = (
        ratio(of_sets(names, "expected", "speculative", key), of_sets(names, "expected", "plain", key))
        for key in ("floor", "predicted")
    )
    plain = of_sets(names, "alone", "plain_tokens_per_second")
    measured = ratio(of_sets(names, "alone", "tokens_per_second"), plain)
    return Figure("times plain", None, measured, floor, predicted, note=TAU_NOTE)


def _mismatch(what: str, batch: str, unit: str) -> Figure:
    value = mismatches(f"speculative, {batch}", what)
    zero: Source = lambda stages: 0.0  # noqa: E731
    return Figure(unit, 0, value, zero, zero, at_most=True, enough=compared(200, 256))


PEER_NOTE = (
    "predicted is a bound from below: of transformers 8 launches a layer, which its products and attention alone are, "
    "and its bytes; what else torch.compile launches, and what its host takes, is not known without running it"
)

FIGURES: dict[str, Figure] = {
    "plain decoding, Qwen3-8B shape": _share("Qwen3-8B", 0.85),
    "plain decoding, Qwen3-1.7B shape": _share("Qwen3-1.7B", 0.65),
    "verify of 16 rows, Qwen3-8B shape": _verify("Qwen3-8B", 16, 1.06),
    "verify of 64 rows, Qwen3-8B shape": _verify("Qwen3-8B", 64, 1.20),
    "neither products nor attention, Qwen3-8B shape": _rest("Qwen3-8B", 0.05),
    "target given, plain": Figure(
        "tokens/s",
        2000,
        of_sets((), "alone", "plain_tokens_per_second"),
        bandwidth_over_weights,
        of_sets((), "expected", "plain", "predicted"),
        note="mean of the sets given",
    ),
    "target given, plain against transformers with static cache and compile": Figure(
        "times", 4, against_compiled, predicted=slowest_peer, note=PEER_NOTE
    ),
    "target given, speculative, GSM8K": _speculative(SETS[:1], 6000),
    "target given, speculative against plain, GSM8K": _speedup(SETS[:1]),
    "target given, speculative, mean of GSM8K, HumanEval, MT-Bench": _speculative(SETS, 4500),
    "target given, speculative against plain, mean of GSM8K, HumanEval, MT-Bench": _speedup(SETS),
    **{
        f"speculative against plain, {batch}: {name}": _mismatch(what, batch, unit)
        for batch in ("batch 1", "batch 16", "batch 16, T = 0.8")
        for name, what, unit in (
            ("tokens that differ", "tokens_that_differ", "tokens"),
            ("requests that differ", "requests_that_differ", "requests"),
            ("caches that differ", "caches_that_differ", "requests"),
        )
    },
    "checks of equality that failed": Figure(
        "checks", 0, checks_failed, lambda stages: 0.0, lambda stages: 0.0, at_most=True
    ),
}
"""Goals are those of the embedded target and of one H200, batch 1, bf16."""


def gpu_figures(stages: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name → value, unit, goal, whether it is met, floor, prediction; ``reason`` why the value or ``met`` is null."""
    by_name = {stage["name"]: stage for stage in stages}
    return {name: _figure(figure, by_name) for name, figure in FIGURES.items()}


def _figure(figure: Figure, stages: Stages) -> dict[str, Any]:
    value, reason, met = None, None, None
    try:
        value = figure.value(stages)
    except Missing as missing:
        reason = str(missing)
    if value is not None and figure.goal is not None:
        met = value <= figure.goal if figure.at_most else value >= figure.goal
        if met and (reason := figure.enough(stages)) is not None:
            met = None
    return {
        "value": value,
        "unit": figure.unit,
        "goal": figure.goal,
        "met": met,
        "floor": _known(figure.floor, stages),
        "predicted": _known(figure.predicted, stages),
        "reason": reason,
        "note": figure.note,
    }


def _known(source: Source, stages: Stages) -> float | None:
    try:
        return source(stages)
    except Missing:
        return None


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def figures_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a figure."""
    lines = []
    for name, figure in figures.items():
        known = figure["value"] is not None
        value = f"{_shown(figure['value'])} {figure['unit']}" if known else "not measured"
        verdict = {True: "met", False: "missed", None: ""}[figure["met"]]
        beside = [
            f"{what} {_shown(figure[what])}" for what in ("goal", "floor", "predicted") if figure[what] is not None
        ]
        told = f" ({', '.join(beside)})" if beside else ""
        why = f": {figure['reason']}" if figure["reason"] else ""
        lines.append(f"{name}: {value}{told} {verdict}".rstrip() + why)
    return "\n".join(lines)
