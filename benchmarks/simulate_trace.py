"""Acceptance traces: what a draft proposed at every place of recorded texts, and which of it was right.  Torch-free.

As a draft's tree depends only on the text before it, a trace with a tree for every place says what any round would have
committed, however many nodes it verifies: rounds of a simulation go through the very texts.

A file has a line of JSON with ``width`` and where it is from, then one line a text, ``{"prompt_tokens": ...,
"trees": [[[parent, score, right], ...], ...]}``: for every output token the nodes that were proposed in its place and
after; node 1 comes first, parent 0 is the root.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft.server.engine.acceptance import Proposal
from redraft.server.engine.types import RedraftError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes proposed at one place of a text, absent ones left out; the root is not among them."""

    parent: tuple[int, ...]
    """Number of the parent, from 1; 0 is the root.  Parents come before children."""
    score: tuple[float, ...]
    """The draft's own estimate that the node is accepted."""
    right: tuple[bool, ...]
    """Whether the text went on like that, down to and including this node."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for what is not a tree with at most one way that is right."""
        if not len(self.parent) == len(self.score) == len(self.right):
            raise ValueError("parents, scores and outcomes must be as many as there are nodes")
        if not all(0 <= above <= place for place, above in enumerate(self.parent)):
            raise ValueError("a parent must come before its child")
        if not all(map(math.isfinite, self.score)):
            raise ValueError("a score must be a finite number")
        end = 0
        for node, (above, right) in enumerate(zip(self.parent, self.right, strict=True), start=1):
            if right and above != end:
                raise ValueError("nodes that are right must form one way down from the root")
            end = node if right else end


NOTHING = Tree((), (), ())


@dataclass(frozen=True, slots=True)
class Text:
    """One recorded request: a tree for every token of its output."""

    prompt_tokens: int
    trees: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Texts of one target and draft."""

    width: int
    """Most nodes that the draft proposes for a request and round."""
    texts: tuple[Text, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where it is from, for people."""


def judged(parent: Sequence[int], token: Sequence[int], score: Sequence[float], following: Sequence[int]) -> Tree:
    """The tree of a proposal, node 0 being the root, by the text that came to follow its anchor.

    Nodes without a score are left out with all below them.  Of siblings with the same token the first is the right one,
    as the kernel has it.
    """
    number, depth, way = {0: 0}, {0: 0}, {0}
    parents, scores, right = list[int](), list[float](), list[bool]()
    for node in range(1, len(token)):
        above = parent[node]
        if not math.isfinite(score[node]) or above not in number:
            continue
        number[node], depth[node] = len(parents) + 1, depth[above] + 1
        fits = above in way and depth[node] <= len(following) and token[node] == following[depth[node] - 1]
        hit = fits and not any(depth[other] == depth[node] for other in way)
        if hit:
            way.add(node)
        parents.append(number[above])
        scores.append(float(f"{score[node]:.9g}"))  # exact for what was 32 bits wide
        right.append(hit)
    return Tree(tuple(parents), tuple(scores), tuple(right))


def proposal(tree: Tree, committed: int, verified: int) -> Proposal:
    """What the engine would learn from, with ``committed`` tokens and ``verified`` nodes; what is right is token 1."""
    tokens = (0, *(int(right) for right in tree.right))
    return Proposal(tokens, (0, *tree.parent), (1.0, *tree.score), (1,) * committed, verified)


def write_trace(path: Path, trace: Trace) -> None:
    """Write ``trace``; ``RedraftError`` where it cannot be written."""
    lines = [json.dumps({"trace": FORMAT, "width": trace.width, **trace.facts}, ensure_ascii=False)]
    for text in trace.texts:
        trees = [
            [list(node) for node in zip(tree.parent, tree.score, map(int, tree.right), strict=True)]
            for tree in text.trees
        ]
        lines.append(json.dumps({"prompt_tokens": text.prompt_tokens, "trees": trees}, separators=(",", ":")))
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise RedraftError(f"cannot write {path} ({error.strerror}); choose another place") from error


def read_trace(path: Path) -> Trace:
    """Read a trace; ``RedraftError`` names file, line and what is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RedraftError(f"cannot read {path} ({reason}); --trace takes what --record wrote") from error
    try:
        number = 1
        header = json.loads(lines[0])
        if header.pop("trace") != FORMAT:
            raise ValueError(f"this reads format {FORMAT}")
        width, texts = int(header.pop("width")), []
        for line in lines[1:]:
            number += 1
            texts.append(_text(json.loads(line), width))
        if not texts:
            raise ValueError("it holds no texts")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__} {error}" if not isinstance(error, ValueError) else str(error)
        raise RedraftError(f"{path}:{number}: not a trace of acceptance ({reason})") from error
    return Trace(width, tuple(texts), header)


def _text(raw: Mapping[str, Any], width: int) -> Text:
    trees = []
    for nodes in raw["trees"]:
        rows = [(int(above), float(score), bool(right)) for above, score, right in nodes]
        if len(rows) > width:
            raise ValueError(f"a tree has {len(rows)} nodes, more than the width {width}")
        parent, score, right = zip(*rows, strict=True) if rows else ((), (), ())
        trees.append(Tree(parent, score, right))
    if int(raw["prompt_tokens"]) < 1 or not trees:
        raise ValueError("a text needs a prompt and an output")
    return Text(int(raw["prompt_tokens"]), tuple(trees))
