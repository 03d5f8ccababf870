"""What training needs of a target; ``server/engine/target/teacher.py`` is the one there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class States:
    """What a target computed of one text of S tokens."""

    taps: Tensor
    """[S, n * H] outputs of the tapped layers, side by side."""
    final: Tensor
    """[S, H] states after the last norm: times the head, the logits of the next token."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that a draft would have had behind a part of a text."""

    at: int
    """The first one's position: it follows the text's first ``at`` tokens."""
    tokens: tuple[int, ...]


class Teacher(Protocol):
    """A frozen target."""

    identity: str
    """Hash of its weights."""
    embedding: Tensor
    """[V, H]"""
    head: Tensor
    """[V, H]"""

    def states(self, tokens: Sequence[int], taps: tuple[int, ...]) -> States:
        """Read ``tokens`` once; ``taps`` are layers from 0."""

    def states_of(self, texts: Sequence[Sequence[int]], taps: tuple[int, ...]) -> list[States]:
        """The same of several texts, read together."""

    def behind(self, texts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]) -> list[Tensor]:
        """[sum of a text's branches' lengths, H] states as ``States.final``, after every token of every branch.

        Each branch is read as if its text went on with it; the branches do not see one another.
        """

    def flops(self, rows: int, behind: int = 0) -> int:
        """Operations of reading a text of ``rows`` tokens and ``behind`` tokens of branches; padding is not counted."""

    def weight(self, name: str) -> Tensor:
        """A tensor of the target's checkpoint by its Hugging Face name."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""
