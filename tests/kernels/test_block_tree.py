"""block_tree against a heap, against every prefix there is, and against the best tree by dynamic programming."""

import heapq
import itertools
import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.block_tree import MAX_NODES, block_tree
from redraft.kernels.pack_tree import pack_tree_twin

Node = tuple[int, int, np.float32]
"""Token, parent's number, cost: the negated log-probability."""
TIED = st.sampled_from([0.0, -0.0, -0.25, -0.25, -0.5, -1.0])
"""Multiples of 1/4, whose fp32 sums are exact: equal products are ties."""
ANY = st.floats(-9.0, 0.0, width=32)
ODD = st.sampled_from([-math.inf, math.nan, 1e-7])
"""What is absent, and what rounding put above 0."""
NODES = st.integers(1, 20) | st.just(MAX_NODES)
pytestmark = pytest.mark.usefixtures("cpu_path")


@st.composite
def marginals(draw: st.DrawFn, max_depth: int = 5, max_k: int = 5, ordered: bool = True) -> list[list[float]]:
    """Log-probabilities of D depths with K candidates each; absent ones are last if ``ordered``."""
    D, K = draw(st.integers(1, max_depth)), draw(st.integers(1, max_k))
    value = draw(st.sampled_from([TIED, ANY])) | ODD
    rows = [draw(st.lists(value, min_size=K, max_size=K)) for _ in range(D)]
    return [sorted(row, key=lambda x: math.inf if math.isnan(x) else -x) if ordered else row for row in rows]


def tokens(logprob: list[list[float]]) -> list[list[int]]:
    """Every candidate its own token."""
    return [[100 * depth + k for k in range(len(row))] for depth, row in enumerate(logprob, 1)]


def tree(logprob: list[list[float]], nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    return block_tree(torch.tensor([7]), torch.tensor([tokens(logprob)]), torch.tensor([logprob]), nodes)


def costs(logprob: list[list[float]]) -> list[list[np.float32]]:
    """Infinite where there is no candidate."""
    return [[np.float32(math.inf if math.isnan(x) else max(-x, 0.0)) for x in row] for row in logprob]


def by_heap(logprob: list[list[float]], nodes: int) -> list[Node]:
    """The paper's algorithm; candidates must be best first.  Whoever is popped pushes next sibling and first child."""
    cost, token = costs(logprob), tokens(logprob)
    D, K = len(cost), len(cost[0])
    # total cost, depth, parent's number, candidate; the parent's cost goes along
    heap = [(cost[0][0], 0, 0, 0, np.float32(0))]
    chosen: list[Node] = []
    while heap and len(chosen) < nodes:
        total, depth, parent, k, before = heapq.heappop(heap)
        if total == math.inf:
            break
        chosen.append((token[depth][k], parent, total))
        if k + 1 < K:
            heapq.heappush(heap, (before + cost[depth][k + 1], depth, parent, k + 1, before))
        if depth + 1 < D:
            heapq.heappush(heap, (total + cost[depth + 1][0], depth + 1, len(chosen), 0, total))
    return chosen


def by_enumeration(logprob: list[list[float]], nodes: int) -> list[tuple[tuple[int, ...], np.float32]]:
    """Candidate numbers and cost of the best prefixes among all there are, ties to the lower depth, then any."""
    cost = costs(logprob)
    prefixes = []
    for depth in range(1, len(cost) + 1):
        for prefix in itertools.product(range(len(cost[0])), repeat=depth):
            total = np.float32(0)
            for row, k in zip(cost, prefix, strict=False):
                total += row[k]
            if total < math.inf:
                prefixes.append((prefix, total))
    return sorted(prefixes, key=lambda p: (p[1], len(p[0])))[:nodes]


def paths(token: Tensor, parent: Tensor, score: Tensor) -> list[tuple[int, ...]]:
    """Paths of tokens to a row's present nodes; a parent that is absent or not lower fails."""
    found: list[tuple[int, ...]] = [()]
    for node in range(1, len(token)):
        if score[node] > -math.inf:
            found.append((*found[int(parent[node])], int(token[node])))
        else:
            assert parent[node] == 0
            assert (score[node:] == -math.inf).all()
    return found[1:]


def assert_is_heap(logprob: list[list[float]], nodes: int) -> None:
    token, parent, score = (tensor[0] for tensor in tree(logprob, nodes))
    assert token.shape == parent.shape == score.shape == (nodes + 1,)
    assert (token[0], parent[0], score[0]) == (7, 0, 1)
    expected = by_heap(logprob, nodes)
    present = 1 + len(expected)
    assert token[1:present].tolist() == [node[0] for node in expected]
    assert parent[1:present].tolist() == [node[1] for node in expected]
    assert (score[present:] == -math.inf).all()
    assert (parent[present:] == 0).all()
    # two units in the last place: exp in fp32 against exp in fp64, rounded
    exact = torch.tensor([math.exp(-node[2]) for node in expected])
    torch.testing.assert_close(score[1:present], exact, rtol=2.4e-7, atol=0)


@settings(max_examples=150, deadline=None)
@given(marginals(), NODES)
@example([[0.0, 0.0, -0.0]] * 4, 12)
@example([[-0.5, math.nan], [-math.inf, -math.inf], [0.0, 0.0]], 5)
def test_is_the_heap(logprob: list[list[float]], nodes: int) -> None:
    assert_is_heap(logprob, nodes)


@pytest.mark.parametrize("nodes", [8, 32, MAX_NODES])
def test_is_the_heap_at_full_size(nodes: int) -> None:
    torch.manual_seed(nodes)
    logits = torch.randn(3, 15, 300).mul(3).log_softmax(2)
    for row in logits.topk(16).values.tolist():
        assert_is_heap(row, nodes)


@settings(max_examples=100, deadline=None)
@given(marginals(max_depth=4, max_k=4, ordered=False), NODES)
def test_is_the_best_of_all_prefixes_in_whatever_order(logprob: list[list[float]], nodes: int) -> None:
    token, parent, score = (tensor[0] for tensor in tree(logprob, nodes))
    found = paths(token, parent, score)
    expected = by_enumeration(logprob, nodes)
    cost = costs(logprob)
    totals = [
        np.cumsum([row[t % 100] for row, t in zip(cost, path, strict=False)], dtype=np.float32)[-1] for path in found
    ]
    assert len(set(found)) == len(found)
    assert [(len(path), total) for path, total in zip(found, totals, strict=True)] == [
        (len(prefix), total) for prefix, total in expected
    ]
    assert (score[1:] <= score[parent[1:]]).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda K: st.lists(st.lists(st.integers(0, 5), min_size=K, max_size=K).map(sorted), min_size=1, max_size=4)
    ),
    st.integers(1, 12),
)
def test_no_tree_has_more_value(halvings: list[list[int]], nodes: int) -> None:
    """Probabilities are powers of 1/2, so that sums of products are exact; trees are counted out, not ranked."""
    D, K = len(halvings), len(halvings[0])

    @cache
    def best(depth: int, first: int, budget: int) -> Fraction:
        """Greatest value of ``budget`` nodes below one parent whose reach is 1, its candidates from ``first`` on."""
        if depth == D or first == K or budget == 0:
            return Fraction(0)
        p = Fraction(1, 2 ** halvings[depth][first])
        taken = (
            p * (1 + best(depth + 1, 0, inside)) + best(depth, first + 1, budget - 1 - inside)
            for inside in range(budget)
        )
        return max(best(depth, first + 1, budget), *taken)

    token, parent, score = (tensor[0] for tensor in tree([[-m * math.log(2) for m in row] for row in halvings], nodes))
    value = sum(
        Fraction(1, 2 ** sum(row[t % 100] for row, t in zip(halvings, path, strict=False)))
        for path in paths(token, parent, score)
    )
    assert value == best(0, 0, nodes)


def test_ties_go_to_the_lower_depth_then_to_the_earlier_parent_then_to_the_earlier_candidate() -> None:
    token, parent, score = tree([[0.0, -0.0], [0.0, -1.0], [-0.5, -0.5]], 9)
    assert token.tolist() == [[7, 100, 101, 200, 200, 300, 301, 300, 301, 201]]
    assert parent.tolist() == [[0, 0, 0, 1, 2, 3, 3, 4, 4, 1]]
    torch.testing.assert_close(score[0].log(), torch.tensor([0.0] * 5 + [-0.5] * 4 + [-1.0]))


def test_one_candidate_per_depth_is_a_chain() -> None:
    token, parent, score = tree([[-0.1]] * 6, 8)
    assert token[0, :7].tolist() == [7, 100, 200, 300, 400, 500, 600]
    assert parent[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 0]
    torch.testing.assert_close(score[0], torch.tensor([math.exp(-0.1 * d) for d in range(7)] + [-math.inf] * 2))


def test_nothing_to_draft_leaves_the_root() -> None:
    _, parent, score = tree([[-math.inf, math.nan], [0.0, 0.0]], 3)
    assert parent.tolist() == [[0, 0, 0, 0]]
    assert score.tolist() == [[1.0, -math.inf, -math.inf, -math.inf]]


def test_a_product_that_rounds_to_zero_is_not_absent() -> None:
    _, parent, score = tree([[-90.0], [-90.0], [-math.inf]], 3)
    assert parent.tolist() == [[0, 0, 1, 0]]
    assert score[0, 2:].tolist() == [0.0, -math.inf]


@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(1, 9))
def test_rows_do_not_touch_each_other_and_inputs_are_not_written_to(data: st.DataObject, nodes: int) -> None:
    D, K = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    row = st.lists(st.lists(TIED | ANY | ODD, min_size=K, max_size=K), min_size=D, max_size=D)
    rows = data.draw(st.lists(row, min_size=2, max_size=4))
    top_token = torch.arange(len(rows) * D * K).view(len(rows), D, K)
    inputs = (torch.arange(len(rows)), top_token, torch.tensor(rows))
    copies = [tensor.clone() for tensor in inputs]
    together = block_tree(*inputs, nodes)
    for i in range(len(rows)):
        alone = block_tree(*(tensor[i : i + 1] for tensor in inputs), nodes)
        for one, other in zip(alone[:2], together[:2], strict=True):
            assert torch.equal(one[0], other[i])
        # exp of a vector's tail may round another way
        torch.testing.assert_close(alone[2][0], together[2][i], rtol=2.4e-7, atol=0)
    for before, after in zip(copies, inputs, strict=True):
        assert torch.equal(before.nan_to_num(7.0), after.nan_to_num(7.0))


def test_pack_tree_takes_the_candidates() -> None:
    """The slot whose draft is surer gets more rows; the trash slot has none."""
    top_token = torch.tensor([[[10, 11], [20, 21]]]).repeat(3, 1, 1)
    top_logprob = torch.tensor([[[0.9, 0.1], [0.9, 0.1]], [[0.3, 0.2], [0.1, 0.1]], [[0.9, 0.1], [0.9, 0.1]]]).log()
    drafted = block_tree(torch.tensor([1, 2, 0]), top_token, top_logprob, 5)
    rows = pack_tree_twin(*drafted, torch.tensor([True, True, False]), torch.tensor([4, 6, 1]), 5)
    assert rows.token.tolist() == [1, 10, 20, 2, 10]
    assert rows.parent.tolist() == [0, 0, 1, 3, 3]
    assert rows.position.tolist() == [3, 4, 5, 5, 6]


@pytest.mark.parametrize("nodes", [1, MAX_NODES])
def test_needs_no_data_on_the_host(nodes: int) -> None:
    with FakeTensorMode():
        top = torch.zeros(3, 7, 8)
        token, parent, score = block_tree(torch.zeros(3, dtype=torch.int64), top.long(), top, nodes)
    assert token.shape == parent.shape == score.shape == (3, nodes + 1)
    assert (token.dtype, parent.dtype, score.dtype) == (torch.int64, torch.int64, torch.float32)


@pytest.mark.parametrize("nodes", [0, MAX_NODES + 1])
def test_refuses_trees_it_cannot_make(nodes: int) -> None:
    with pytest.raises(ValueError, match=f"nodes must be 1 to {MAX_NODES}, not {nodes}"):
        tree([[0.0]], nodes)


@pytest.mark.parametrize(("rows", "depths", "k"), [(2, 3, 4), (1, 3, 5), (1, 2, 4)])
def test_refuses_candidates_that_do_not_fit(rows: int, depths: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"must be \[N\], \[N, D, K\] and \[N, D, K\]"):
        block_tree(torch.zeros(rows, dtype=torch.int64), torch.zeros(1, 3, 4).long(), torch.zeros(1, depths, k), 2)


def test_refuses_no_candidates() -> None:
    with pytest.raises(ValueError, match=r"not \[1\], \[1, 0, 4\], \[1, 0, 4\]"):
        block_tree(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 0, 4).long(), torch.zeros(1, 0, 4), 2)
