"""The device of a simulated engine: whose nodes a round verifies, what it commits, and how long a pass takes.

Does by rule what ``pack_tree`` and ``accept`` do to tensors.  Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redraft.benchmarks.simulate_script import Script
from redraft.benchmarks.simulate_trace import NOTHING, Tree
from redraft.server.engine.costs import CostTable, Work
from redraft.server.engine.sequence import Sequence as Running


@dataclass(slots=True)
class Slot:
    """A request as the device knows it, which may be a round ahead of the host."""

    sequence: Running
    script: Script
    place: int
    """Output tokens committed."""
    total: int
    """Of its whole output."""
    nodes: int
    """Most that it may have verified in a round."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What a round did for one request."""

    sequence: Running
    tokens: int
    accepted: int
    drafted: int
    finished: bool
    tree: Tree
    """What was proposed."""


def run_round(slots: Sequence[Slot], rows: int, trust: Mapping[int, float] | None, *, drafting: bool) -> list[Commit]:
    """One round over ``rows`` rows for what is not finished, in the order given; advances the slots.

    ``trust`` by slot number; None where the draft's scores count as they are, as with a request that runs alone.
    """
    active = [slot for slot in slots if slot.place < slot.total]
    trees = [slot.script.tree(slot.place) if drafting else NOTHING for slot in active]
    given = _share(active, trees, rows - len(active), trust)
    commits = []
    for slot, tree, nodes in zip(active, trees, given, strict=True):
        walked = sum(tree.right[node] for node in nodes)
        tokens = min(walked + 1, slot.total - slot.place)
        slot.place += tokens
        finished = slot.place == slot.total
        commits.append(Commit(slot.sequence, tokens, min(walked, tokens), len(nodes), finished, tree))
    return commits


def _share(
    slots: Sequence[Slot], trees: Sequence[Tree], rows: int, trust: Mapping[int, float] | None
) -> list[list[int]]:
    """The best ``rows`` nodes of all trees, by tree; ties go to the lower slot, then to the lower node."""
    scores = [reach(tree, slot.nodes) for slot, tree in zip(slots, trees, strict=True)]
    if trust is not None:
        # in 32 bits, as the device has it: what ties there must tie here
        scores = [own * np.float32(trust[slot.sequence.running_slot]) for slot, own in zip(slots, scores, strict=True)]
    if not scores:
        return []
    order = sorted(range(len(slots)), key=lambda place: slots[place].sequence.running_slot)
    owner = np.repeat(order, [len(scores[place]) for place in order])
    node = np.concatenate([np.arange(len(scores[place])) for place in order])
    every = np.concatenate([scores[place] for place in order])
    best = np.argsort(-every, kind="stable")[: max(rows, 0)]
    given: list[list[int]] = [[] for _ in slots]
    for key in best[np.isfinite(every[best])].tolist():
        given[int(owner[key])].append(int(node[key]))
    return given


def reach(tree: Tree, most: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The lowest score on the way to each node, without those beyond the best ``most`` (-inf)."""
    ranked = sorted(range(len(tree.score)), key=lambda node: (-tree.score[node], node))
    kept = set(ranked[:most])
    lowest: list[float] = []
    for node, above in enumerate(tree.parent):
        own = tree.score[node] if node in kept else -math.inf
        lowest.append(min(own, lowest[above - 1]) if above else own)
    return np.array(lowest, dtype=np.float32)


def seconds(table: CostTable, work: Work) -> float:
    """What a pass takes by the table; without what a round has beside its pass where nothing decodes."""
    attending = table.per_request * work.context + table.per_row * work.row_context
    drafting = table.draft(work.requests) if work.drafting else 0.0
    return table.forward(work.rows) + attending + drafting + (table.round if work.requests else 0.0)
