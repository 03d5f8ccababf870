"""Whose nodes a simulated round verifies, what it commits, and what it takes."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch

from redraft.benchmarks.simulate_device import Slot, reach, run_round, seconds
from redraft.benchmarks.simulate_trace import NOTHING, Tree
from redraft.kernels.pack_tree import pack_tree
from redraft.server.engine.costs import Costs, CostTable, Work
from redraft.server.engine.prefix import PageKeys
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.types import Request, SamplingParams

CHAIN = Tree((0, 1, 2), (0.9, 0.6, 0.3), (True, True, False))
TABLE = CostTable((2, 8, 16), (0.01, 0.02, 0.04), 1e-6, 2e-6, (1, 2), (0.003, 0.005), 0.001)


@dataclass(frozen=True)
class Always:
    """Proposes the same everywhere."""

    one: Tree

    def tree(self, place: int) -> Tree:
        return self.one


def slot(number: int, tree: Tree, place: int = 0, total: int = 100, nodes: int = 63) -> Slot:
    sequence = Sequence(Request(str(number), (1,), SamplingParams(total)), 101, PageKeys("", ""), [1], slot=number)
    return Slot(sequence, Always(tree), place, total, nodes)


def committed(slots: list[Slot], rows: int, trust: dict[int, float] | None = None) -> list[tuple[int, int, int]]:
    return [(c.tokens, c.accepted, c.drafted) for c in run_round(slots, rows, trust, drafting=True)]


def test_a_round_commits_what_was_right_and_one_more() -> None:
    one = slot(0, CHAIN)
    assert committed([one], 4) == [(3, 2, 3)]
    assert one.place == 3
    assert committed([slot(0, CHAIN)], 2) == [(2, 1, 1)]
    assert committed([slot(0, CHAIN)], 1) == [(1, 0, 0)]
    assert committed([slot(0, CHAIN)], 64) == [(3, 2, 3)], "padding rows verify nothing"


def test_the_end_of_a_text_cuts_a_round() -> None:
    last = slot(0, CHAIN, place=98)
    (commit,) = run_round([last], 4, None, drafting=True)
    assert (commit.tokens, commit.accepted, commit.finished) == (2, 2, True)
    assert run_round([last], 4, None, drafting=True) == [], "what is finished sits a round out"


def test_without_a_draft_a_round_is_one_token() -> None:
    (commit,) = run_round([slot(0, CHAIN)], 8, None, drafting=False)
    assert (commit.tokens, commit.drafted, commit.tree) == (1, 0, NOTHING)


def test_rows_go_to_the_best_nodes_of_all_and_ties_to_the_lower_slot() -> None:
    weak = Tree((0, 0), (0.5, 0.2), (False, False))
    assert committed([slot(0, weak), slot(1, CHAIN)], 2 + 3) == [(1, 0, 1), (3, 2, 2)]
    # who is given first does not matter, the slot does
    assert committed([slot(1, CHAIN), slot(0, CHAIN)], 2 + 3) == [(2, 1, 1), (3, 2, 2)]
    assert committed([slot(0, CHAIN), slot(1, CHAIN)], 2 + 3, {0: 0.1, 1: 1.0}) == [(1, 0, 0), (3, 2, 3)]


def test_a_request_gets_no_more_than_it_may_have() -> None:
    assert committed([slot(0, CHAIN, nodes=1)], 8) == [(2, 1, 1)]
    assert committed([slot(0, CHAIN, nodes=0)], 8) == [(1, 0, 0)]


def test_a_node_counts_with_the_lowest_score_on_its_way() -> None:
    assert reach(Tree((0, 1, 0), (0.2, 0.9, 0.5), (False,) * 3), 63).tolist() == pytest.approx([0.2, 0.2, 0.5])
    # the best two alone: the child of one that is not among them goes, too
    assert reach(Tree((0, 1, 0), (0.2, 0.9, 0.5), (False,) * 3), 2).tolist() == [-math.inf, -math.inf, 0.5]


@pytest.mark.parametrize("seed", range(20))
def test_nodes_are_those_that_the_kernel_takes(seed: int) -> None:
    chance = random.Random(seed)
    slots, width = chance.randrange(1, 5), chance.randrange(1, 9)
    parents = [[0, *(chance.randrange(node + 1) for node in range(width))] for _ in range(slots)]
    scores = [[1.0, *(chance.choice((0.5, 0.25, chance.random())) for _ in range(width))] for _ in range(slots)]
    rows = slots + chance.randrange(slots * width + 1)
    packed = pack_tree(
        torch.zeros(slots + 1, width + 1, dtype=torch.int64),
        torch.tensor([*parents, [0] * (width + 1)]),
        torch.tensor([*scores, [-math.inf] * (width + 1)]),
        torch.tensor([True] * slots + [False]),
        torch.ones(slots + 1, dtype=torch.int64),
        rows,
    )
    trees = [Tree(tuple(p[1:]), tuple(s[1:]), (False,) * width) for p, s in zip(parents, scores, strict=True)]
    found = run_round([slot(number, tree) for number, tree in enumerate(trees)], rows, None, drafting=True)
    assert [commit.drafted for commit in found] == (packed.row_count[:slots] - 1).tolist()


def test_a_pass_takes_what_the_table_says() -> None:
    work = Work(8, 2, context=1000, row_context=500, drafting=True)
    assert seconds(TABLE, work) == pytest.approx(0.02 + 0.001 + 0.001 + 0.005 + 0.001)
    assert seconds(TABLE, work) == pytest.approx(Costs(TABLE).seconds(work)), "as the pacer expects it"
    alone = Work(16, 0, context=100, row_context=100)
    assert seconds(TABLE, alone) == pytest.approx(0.04 + 0.0001 + 0.0002), "prefill alone samples nothing"
