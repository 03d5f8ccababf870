"""The figures that the GPU suite is after, read out of its stages: value, goal, and what memory's speed would allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Stages = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: how it is found, and what it has to reach."""

    unit: str
    goal: float
    value: Callable[[Stages], float | None]
    floor: Callable[[Stages], float | None] = lambda stages: None
    """The best that the bytes to be moved allow, in the same unit."""
    predicted: Callable[[Stages], float | None] = lambda stages: None
    """What bytes and launches together allow (traffic.py): written down before anything was measured."""
    at_most: bool = False
    """Whether less is better."""


def _step(stages: Stages, shape: str, rows: int, key: str) -> float | None:
    steps: Sequence[Mapping[str, Any]] = stages.get("steps", {}).get("steps", ())
    for step in steps:
        if (step["shape"], step["requests"], step["rows"]) == (shape, 1, rows):
            return step.get(key)
    return None


def _share(shape: str) -> Figure:
    def predicted(stages: Stages) -> float | None:
        memory, whole = (_step(stages, shape, 1, key) for key in ("memory_seconds", "predicted_seconds"))
        return memory / whole if memory and whole else None

    goal = {"Qwen3-8B": 0.85}.get(shape, 0.65)
    return Figure("of the copy bandwidth", goal, lambda s: _step(s, shape, 1, KEY_SHARE), predicted=predicted)


def _verify(shape: str, rows: int, goal: float) -> Figure:
    def ratio(key: str) -> Callable[[Stages], float | None]:
        def found(stages: Stages) -> float | None:
            many, one = (_step(stages, shape, count, key) for count in (rows, 1))
            return many / one if many and one else None

        return found

    floor, predicted = ratio("memory_seconds"), ratio("predicted_seconds")
    return Figure("plain steps", goal, lambda s: _step(s, shape, rows, "against_plain"), floor, predicted, at_most=True)


def _speed(key: str, goal: float) -> Figure:
    def floor(stages: Stages) -> float | None:
        weights = stages.get("speed", {}).get("weight_bytes")
        bandwidth = stages.get("bandwidth", {}).get("copy_bytes_per_second")
        return bandwidth / weights if weights and bandwidth and key.startswith("plain") else None

    def predicted(stages: Stages) -> float | None:
        milliseconds = stages.get("speed", {}).get("plain_step", {}).get("predicted_milliseconds")
        return 1e3 / milliseconds if milliseconds and key.startswith("plain") else None

    return Figure("tokens/s", goal, lambda s: s.get("speed", {}).get("alone", {}).get(key), floor, predicted)


def _against_peer(stages: Stages) -> float | None:
    ours = stages.get("speed", {}).get("alone", {}).get("plain_tokens_per_second")
    peer = stages.get("peers", {}).get("peers", {}).get("transformers, static cache and compile", {})
    theirs = peer.get("tokens_per_second")
    return ours / theirs if ours and theirs else None


def _mismatches(stages: Stages) -> float | None:
    checks = stages.get("equality", {}).get("checks")
    return None if checks is None else float(sum(not check["ok"] for check in checks))


KEY_SHARE = "share_of_bandwidth"
FIGURES: dict[str, Figure] = {
    "plain decoding, Qwen3-8B shape": _share("Qwen3-8B"),
    "plain decoding, Qwen3-1.7B shape": _share("Qwen3-1.7B"),
    "verify of 16 rows, Qwen3-8B shape": _verify("Qwen3-8B", 16, 1.06),
    "verify of 64 rows, Qwen3-8B shape": _verify("Qwen3-8B", 64, 1.20),
    "target given, plain": _speed("plain_tokens_per_second", 2000),
    "target given, speculative": _speed("tokens_per_second", 6000),
    "target given, plain against transformers with static cache and compile": Figure("times", 4, _against_peer),
    "checks of equality that failed": Figure("checks", 0, _mismatches, at_most=True),
}
"""Goals are those of the embedded target and of one H200, batch 1, bf16."""


def gpu_figures(stages: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name → value, unit, goal, whether it is met, floor by bytes and bandwidth, prediction; None: unknown."""
    by_name = {stage["name"]: stage for stage in stages}
    found = {}
    for name, figure in FIGURES.items():
        value = figure.value(by_name)
        met = None if value is None else value <= figure.goal if figure.at_most else value >= figure.goal
        found[name] = {
            "value": value,
            "unit": figure.unit,
            "goal": figure.goal,
            "met": met,
            "floor": figure.floor(by_name),
            "predicted": figure.predicted(by_name),
        }
    return found


def figures_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a figure."""
    lines = []
    for name, figure in figures.items():
        known = figure["value"] is not None
        value = f"{figure['value']:.3g} {figure['unit']}" if known else "not measured"
        verdict = {True: "met", False: "missed", None: ""}[figure["met"]]
        beside = (f", {what} {figure[what]:.3g}" for what in ("floor", "predicted") if figure[what] is not None)
        lines.append(f"{name}: {value} (goal {figure['goal']:g}{''.join(beside)}) {verdict}".rstrip())
    return "\n".join(lines)
