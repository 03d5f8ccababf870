"""Acceptance of a trained draft on answers to the evaluation prompts, without decoding, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from redraft.benchmarks.headline.plan import Arm
from redraft.benchmarks.headline.train import Bench, new_run
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.training.data import Text
from redraft.drafts.training.rounds import walk
from redraft.server.train import DRAFT, RunOptions
from redraft.server.train_start import kept_tokens

TREE = 31
"""Drafted nodes: with the root, 32 rows."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one set of prompts at one temperature."""

    name: str
    temperature: float
    texts: Sequence[Text]


def by_set(texts: Sequence[Text], name: str) -> list[Answers]:
    """Answers of one file, apart by temperature."""
    return [
        Answers(name, temperature, [text for text in texts if text.temperature == temperature])
        for temperature in sorted({text.temperature for text in texts})
    ]


def evaluate(bench: Bench, arm: Arm, answers: Sequence[Answers]) -> list[dict[str, Any]]:
    """One entry a set, temperature and shape of the proposal, with tokens, rounds and counts of every prompt."""
    start = read_draft(bench.out / arm.name / DRAFT)
    kept = kept_tokens(arm.settings, bench.spec, bench.texts, start)
    settings = replace(arm.settings, start=start.version)
    scratch = RunOptions(bench.out / arm.name / "evaluation")
    every = [text for some in answers for text in some.texts]
    run = new_run(replace(bench, texts=bench.texts[:1], dev=every), settings, scratch, kept, start)
    found = []
    shapes = {"chain": 0} if arm.name == "eagle3" else {"chain": 0, "tree": TREE}
    for some in answers:
        for shape, nodes in shapes.items():
            counts = run.counts(some.texts, nodes)
            visited = [[row[place] for place in walk(row)] for row in counts]
            found.append(
                {
                    "set": some.name,
                    "temperature": some.temperature,
                    "shape": shape,
                    "tau": sum(map(len, counts)) / sum(map(len, visited)),
                    "tokens": [len(row) for row in counts],
                    "rounds": [len(row) for row in visited],
                    "accepted": histogram(visited, run.config.drafted),
                }
            )
    return found


def histogram(visited: Sequence[Sequence[int]], most: int) -> list[int]:
    """Rounds that accepted 0, 1 ... ``most`` tokens."""
    made = [0] * (most + 1)
    for row in visited:
        for count in row:
            made[count] += 1
    return made
