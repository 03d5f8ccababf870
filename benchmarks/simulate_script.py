"""What a simulated request is going to say: how long it is, and what a draft proposes at every place of it.

A script does not change with what is drafted or when, as a target's text does not: both ways of decoding, and every
load, go through the same scripts.  Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from redraft.benchmarks.simulate_lengths import Lengths
from redraft.benchmarks.simulate_trace import NOTHING, Text, Trace, Tree


class Script(Protocol):
    """The draft's side of one text."""

    def tree(self, place: int) -> Tree:
        """What is proposed once ``place`` output tokens are committed."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded text, from some place on and over again where it is too short."""

    text: Text
    start: int = 0

    def tree(self, place: int) -> Tree:
        """As recorded."""
        trees = self.text.trees
        return trees[(self.start + place) % len(trees)]


class Chances:
    """Chains whose node of rank k is right with the k-th of the given chances, all of them nested."""

    def __init__(self, rates: Sequence[float]) -> None:
        """``rates`` must not rise; 0 ends the chain."""
        self.width = len(rates)
        rates = tuple(rate for rate in rates if rate > 0)
        self.rates = rates
        parents = tuple(range(len(rates)))
        self._trees = [
            Tree(parents, rates, tuple(rank < hits for rank in range(len(rates)))) for hits in range(len(rates) + 1)
        ]

    def drawn(self, number: float) -> Tree:
        """The chain for a number drawn evenly from 0 ... 1."""
        return self._trees[sum(number < rate for rate in self.rates)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A text whose trees are drawn by chance, each place for itself and always the same."""

    chances: Chances
    seed: str

    def tree(self, place: int) -> Tree:
        """Drawn by seed and place."""
        return self.chances.drawn(random.Random(f"{self.seed}/{place}").random())


class Plain:
    """A text for which nothing is drafted."""

    def tree(self, place: int) -> Tree:
        """Nothing."""
        return NOTHING


@dataclass(frozen=True, slots=True)
class Job:
    """One simulated request."""

    number: int
    prompt_tokens: int
    output_tokens: int
    script: Script


def jobs(
    requests: int,
    source: Trace | Chances,
    prompt_tokens: Lengths | None,
    output_tokens: Lengths | None,
    seed: int,
) -> tuple[Job, ...]:
    """``requests`` jobs, the same for the same arguments.

    A trace's texts come in order, over and over.  Lengths that are not given are its own; with a length of output that
    is given, an output begins anywhere in its text.  Raises ``ValueError`` for chances without lengths.
    """
    made = []
    script: Script
    for number in range(requests):
        # a generator for every request: the lengths of one do not depend on how many there are
        chance = random.Random(f"{seed}/{number}")
        if isinstance(source, Chances):
            if prompt_tokens is None or output_tokens is None:
                raise ValueError("chances say nothing of lengths")
            text, script = None, Drawn(source, f"{seed}/{number}")
        else:
            text = source.texts[number % len(source.texts)]
            script = Recorded(text, 0 if output_tokens is None else chance.randrange(len(text.trees)))
        made.append(
            Job(
                number,
                text.prompt_tokens if prompt_tokens is None and text else _drawn(prompt_tokens, chance),
                len(text.trees) if output_tokens is None and text else _drawn(output_tokens, chance),
                script,
            )
        )
    return tuple(made)


def _drawn(lengths: Lengths | None, chance: random.Random) -> int:
    assert lengths is not None
    return lengths.draw(chance)
