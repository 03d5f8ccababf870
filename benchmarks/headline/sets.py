"""What evaluation texts give away by themselves, to be read beside every draft's τ: how far n-gram lookup comes, which
needs no training, and how much of them loops, where any drafter shines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from redraft.benchmarks.headline.evaluate import TREE, Answers
from redraft.benchmarks.headline.runs import read_json
from redraft.benchmarks.headline.table import Rows
from redraft.benchmarks.loops import looping
from redraft.drafts.training.data import Text
from redraft.drafts.training.rounds import down_the_tree, walk
from redraft.kernels.ngram import MAX_DEPTH, MAX_NODES, ngram
from redraft.server.engine.types import RedraftError

FILE = "sets.json"
KEY = ("set", "temperature", "drafted", "tokens")
"""What makes two entries the same."""
FIGURES = ("looping", "chain", "tree")


def write_sets(out: Path, answers: Sequence[Answers], drafted: int) -> None:
    """Add to ``out``'s file what it lacks of ``answers``; ``drafted``: tokens of a chain, as many as drafts have."""
    found = {_key(one): one for one in read_sets(out)}
    before = len(found)
    for some in answers:
        bare = {"set": some.name, "temperature": some.temperature, "drafted": drafted, "tokens": _tokens(some.texts)}
        if _key(bare) not in found:
            found[_key(bare)] = bare | _described(some.texts, drafted)
    if len(found) > before:
        part = out / f"{FILE}.{os.getpid()}.part"  # another process may be at the same answers
        part.write_text(json.dumps(list(found.values())) + "\n")
        part.replace(out / FILE)


def read_sets(out: Path) -> list[dict[str, Any]]:
    """The entries of ``out``'s file; none if there is none.  Raises ``RedraftError`` if it is damaged."""
    path = out / FILE
    found = read_json(path.read_text(), str(path), list) if path.is_file() else []
    if not all(isinstance(one, dict) and {*KEY, *FIGURES} <= one.keys() for one in found):
        raise RedraftError(f"{path}: lacks what training writes; remove the file, and train with --answers again")
    return found


def set_rows(sets: Sequence[Mapping[str, Any]]) -> Rows:
    """A line a set."""
    rows = [["answers to", "T", "tokens", "looping", "n-gram chain", f"n-gram tree of {TREE + 1}"]]
    for one in sets:
        told = f"{one['temperature']:g}", f"{one['tokens']:,}", f"{one['looping']:.1%}"
        rows.append([one["set"], *told, f"{one['chain']:.3f}", f"{one['tree']:.3f}"])
    return rows


def accepted(text: Text, drafted: int) -> tuple[list[int], list[int]]:
    """How many tokens of n-gram lookup's chain of ``drafted`` and of its tree are right at every anchor of ``text``."""
    anchors = torch.tensor(text.anchors)
    length, active = anchors + 1, torch.ones(len(anchors), dtype=torch.bool)
    # one column for every token that occurs, instead of one for every token there is
    names, number = torch.unique(torch.tensor(text.tokens), return_inverse=True)
    rows, newest = number.repeat(len(anchors), 1), torch.zeros(len(anchors), len(names), dtype=torch.int32)
    bound = len(text.tokens)
    place = length.unsqueeze(1) + torch.arange(MAX_DEPTH)
    wanted = torch.where(place < bound, rows.gather(1, place.clamp_max(bound - 1)), -1)
    # of all nodes the spine comes first; the tree keeps the best
    spine, _, score = ngram(rows, length, active, newest, max_nodes=MAX_NODES, context_bound=bound)
    depth = min(drafted, MAX_DEPTH)
    right = (spine[:, 1 : depth + 1] == wanted[:, :depth]) & (score[:, 1 : depth + 1] > 0)
    tree = ngram(rows, length, active, newest, max_nodes=TREE, context_bound=bound)
    return right.long().cumprod(1).sum(1).tolist(), down_the_tree(wanted, *tree).tolist()


def _described(texts: Sequence[Text], drafted: int) -> dict[str, float]:
    pairs = [accepted(text, drafted) for text in texts]
    chain, tree = (sum(len(walk(one)) for one in counts) for counts in zip(*pairs, strict=True))
    looped = sum(looping(text.tokens[text.prompt :]) for text in texts)
    tokens = _tokens(texts)
    return dict(zip(FIGURES, (looped / tokens, tokens / chain, tokens / tree), strict=True))


def _tokens(texts: Sequence[Text]) -> int:
    return sum(len(text.anchors) for text in texts)


def _key(one: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(one[name] for name in KEY)
