"""Finished arms as they lie in the run folder: what each was asked for, what it spent, how it went, what it came to."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from redraft.benchmarks.headline.plan import ARM_FLOPS, TRUNK_FLOPS, Choices, arms
from redraft.server.engine.types import RedraftError

Kind = TypeVar("Kind", dict[str, Any], list[Any])


@dataclass(frozen=True, slots=True)
class Cost:
    """Of training: the target's passes, the draft's and its head's; measuring and saving left out."""

    flops: float = 0.0
    labels: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.labels + other.labels, self.seconds + other.seconds)


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement while training."""

    step: int
    cost: Cost
    """From the arm's own first step to here."""
    tau: float
    """Greedy chain acceptance length on the held-out answers."""


@dataclass(frozen=True, slots=True)
class Result:
    """A draft on one set of prompts, at one temperature, with one shape of proposal; tokens and rounds by prompt."""

    set: str
    temperature: float
    shape: str
    tokens: Sequence[int]
    rounds: Sequence[int]
    accepted: Sequence[int]

    @property
    def key(self) -> tuple[str, float, str]:
        """What two arms must have in common to be compared."""
        return self.set, self.temperature, self.shape


@dataclass(frozen=True, slots=True)
class Trained:
    """One finished arm."""

    name: str
    card: Mapping[str, Any]
    planned: float | None
    """Operations it was to spend; None where the card does not tell."""
    spent: Cost
    before: Cost
    """Of the arm it went on from."""
    points: Sequence[Point]
    results: Sequence[Result]
    evaluated: Mapping[str, Any]
    """Where the results come from: date, command, commit, machine; empty without an evaluation."""

    @property
    def total(self) -> Cost:
        """From nothing to the finished draft."""
        return self.before + self.spent


def read_runs(folder: Path, chosen: Sequence[str] = ()) -> tuple[list[Trained], list[str]]:
    """The finished arms of ``folder`` in the plan's order, and what is there but left out, in words.

    ``chosen``: only these.  Raises ``RedraftError`` for a folder without any, an unknown name, or a damaged file.
    """
    if not folder.is_dir():
        raise RedraftError(f"there is no folder {folder}; give the --out of the training as --runs")
    names = [arm.name for arm in arms(Choices())]
    require_known(chosen, names)
    found, left_out = [], []
    for name in names:
        if chosen and name not in chosen:
            continue
        if (folder / name / "draft" / "card.json").is_file():
            found.append(_read_arm(folder / name))
        elif name in chosen:
            raise RedraftError(f"{folder / name}: no finished draft there; let its training end, or leave it out")
        elif (folder / name).is_dir():
            left_out.append(f"{name} is not finished and left out")
    if not found:
        raise RedraftError(f"{folder} has no finished arm of {', '.join(names)}")
    return found, left_out


def require_known(chosen: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a name that is no arm's."""
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        raise RedraftError(f"there is no arm {', '.join(unknown)}; there are {', '.join(names)}")


def _read_arm(folder: Path) -> Trained:
    path = folder / "draft" / "card.json"
    card = read_json(path.read_text(), str(path), dict)
    evaluation = folder / "evaluation.json"
    told = read_json(evaluation.read_text(), str(evaluation), dict) if evaluation.is_file() else {"results": []}
    try:
        before = card.get("before")
        return Trained(
            folder.name,
            card,
            _planned(folder.name, card),
            _spent(card),
            _spent(before) if before else Cost(),
            _points(folder / "state" / "log.jsonl"),
            [_result(one, str(evaluation)) for one in told.pop("results")],
            told,
        )
    except (KeyError, TypeError, AttributeError, ValueError, argparse.ArgumentError) as error:
        raise RedraftError(f"{folder}: its card, log or evaluation lacks what training writes ({error!r})") from None


def _planned(name: str, card: Mapping[str, Any]) -> float | None:
    if "planned_flops" in card:
        return float(card["planned_flops"])
    # the first comparison's cards tell it by their command alone
    command = card.get("command")
    if not command:
        return None
    # without abbreviations: --arm is not the beginning of --arm-flops here
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--trunk-flops", type=float, default=TRUNK_FLOPS)
    parser.add_argument("--arm-flops", type=float, default=ARM_FLOPS)
    asked, _ = parser.parse_known_args(shlex.split(command))
    (arm,) = (arm for arm in arms(Choices()) if arm.name == name)
    return arm.budget(asked.trunk_flops, asked.arm_flops)


def _spent(card: Mapping[str, Any]) -> Cost:
    return Cost(float(sum(card["training_flops"].values())), int(card["labels"]), float(card["training_seconds"]))


def _points(path: Path) -> list[Point]:
    """The log's measurements.  It repeats the last one in every line: measured is where it changes, and at the end."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    steps = [read_json(line, f"{path}:{number}", dict) for number, line in enumerate(lines, 1)]
    points, last = list[Point](), None
    for step in steps:
        if step["tau"] is not None and (step["tau"] != last or step is steps[-1]):
            cost = Cost(float(sum(step["flops"].values())), int(step["labels"]), float(step["seconds"]))
            points.append(Point(int(step["step"]), cost, float(step["tau"])))
        last = step["tau"]
    return points


def _result(raw: Mapping[str, Any], place: str) -> Result:
    result = Result(*(raw[name] for name in Result.__slots__))
    if not result.tokens or len(result.tokens) != len(result.rounds):
        raise RedraftError(f"{place}: tokens and rounds of {result.set} are not those of the same prompts")
    return result


def read_json(text: str, place: str, kind: type[Kind]) -> Kind:
    """``text`` as JSON, which has to be of ``kind``; ``place`` is named where it is not."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RedraftError(
            f"{place}: damaged JSON ({error}); restore the file, or remove what it belongs to and train again"
        ) from None
    if not isinstance(found, kind):
        wanted = "object" if kind is dict else "list"
        raise RedraftError(f"{place}: a JSON {wanted} is expected, not {type(found).__name__}")
    return found
