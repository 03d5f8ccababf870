"""block_tree with probabilities that depend on the candidate before: against every prefix there is."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.block_tree import block_tree

pytestmark = pytest.mark.usefixtures("cpu_path")
Table = list[list[list[float]]]
"""[D][K][K] log-probabilities of candidate c behind candidate p."""


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Of whole quarters, whose sums are exact, or of any numbers; some candidates are absent behind some."""
    depths, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    value = draw(st.sampled_from([st.sampled_from([0.0, -0.25, -0.5, -1.0]), st.floats(-9.0, 0.0, width=32)]))
    rows = st.lists(value | st.just(-math.inf), min_size=width, max_size=width)
    return [[draw(rows) for _ in range(width)] for _ in range(depths)]


def best_prefixes(table: Table, nodes: int) -> list[tuple[np.float32, int]]:
    """Cost and length of the best among all there are."""
    found = []
    for depth in range(1, len(table) + 1):
        for prefix in itertools.product(range(len(table[0])), repeat=depth):
            found.append((cost_of(table, prefix), depth))
    return sorted(entry for entry in found if entry[0] < math.inf)[:nodes]


def cost_of(table: Table, prefix: tuple[int, ...]) -> np.float32:
    total, before = np.float32(0), 0
    for depth, candidate in enumerate(prefix):
        total += np.float32(-table[depth][before][candidate])
        before = candidate
    return total


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(1, 20))
def test_is_the_best_of_all_prefixes(table: Table, nodes: int) -> None:
    depths, width = len(table), len(table[0])
    names = torch.arange(depths * width).view(1, depths, width)
    tensors = block_tree(torch.tensor([99]), names, torch.tensor([table]), nodes)
    token, parent, score = (tensor[0].tolist() for tensor in tensors)
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, nodes + 1):
        if score[node] > -math.inf:
            assert parent[node] < node
            paths.append((*paths[parent[node]], token[node] % width))
            assert token[node] // width == len(paths[-1]) - 1
    expected = best_prefixes(table, nodes)
    assert len(set(paths)) == len(paths) == 1 + len(expected)
    assert [(cost_of(table, path), len(path)) for path in paths[1:]] == expected
    present = torch.tensor([score[node] for node in range(1, len(paths))])
    torch.testing.assert_close(present, torch.tensor([math.exp(-cost) for cost, _ in expected]), rtol=2.4e-7, atol=0)


@pytest.mark.parametrize("nodes", [1, 9, 63])
def test_what_does_not_depend_on_it_is_as_before(nodes: int) -> None:
    torch.manual_seed(nodes)
    best = torch.randn(5, 7, 40).log_softmax(-1).topk(8)
    anchor, paired = torch.arange(5), best.values.unsqueeze(2).expand(-1, -1, 8, -1)
    for one, other in zip(
        block_tree(anchor, best.indices, best.values, nodes),
        block_tree(anchor, best.indices, paired, nodes),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_looks_at_no_data() -> None:
    with FakeTensorMode():
        token = torch.zeros(3, 7, 8, dtype=torch.int64)
        made = block_tree(torch.zeros(3, dtype=torch.int64), token, torch.zeros(3, 7, 8, 8), 15)
    assert [tuple(tensor.shape) for tensor in made] == [(3, 16)] * 3


def test_refuses_pairs_of_another_size() -> None:
    token = torch.zeros(1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\[N, D, K\] or \[N, D, K, K\]"):
        block_tree(torch.zeros(1, dtype=torch.int64), token, torch.zeros(1, 2, 3, 4), 5)
