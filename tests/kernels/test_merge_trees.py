"""merge_trees against a literal merge of tries with dictionaries, over trees that good and broken drafts make."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels import merge_trees as module
from redraft.kernels.merge_trees import MAX_WIDTH, merge_trees, merge_trees_kernel, merge_trees_twin
from redraft.kernels.pack_tree import pack_tree_twin

Tree = tuple[list[int], list[int], list[float]]
"""Token, parent and score of one row's nodes."""
Trees = tuple[Tensor, Tensor, Tensor]
"""The same of several rows."""
Path = tuple[int, ...]
SCORES = st.sampled_from([1.0, 0.5, 0.25, 0.125, 0.0, -math.inf, math.nan])
ROOT = 9


@st.composite
def trees(draw: st.DrawFn, width: int) -> Tree:
    """Any numbering of parents before children; children may score above parents and siblings may repeat."""
    token = [ROOT] + [draw(st.integers(0, 2)) for _ in range(1, width)]
    parent = [0] + [draw(st.integers(0, i - 1)) for i in range(1, width)]
    score = [draw(st.sampled_from([1.0, -math.inf]))] + [draw(SCORES) for _ in range(1, width)]
    return token, parent, score


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Tree], list[Tree]]:
    """One to three rows of first and second trees, of one width each."""
    A, B, N = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    return [draw(trees(A)) for _ in range(N)], [draw(trees(B)) for _ in range(N)]


def stack(rows: list[Tree]) -> tuple[Tensor, Tensor, Tensor]:
    token, parent, score = zip(*rows, strict=True)
    return torch.tensor(token), torch.tensor(parent), torch.tensor(score, dtype=torch.float32)


def unstack(tree: tuple[Tensor, Tensor, Tensor]) -> list[Tree]:
    return list(zip(*(tensor.tolist() for tensor in tree), strict=True))


def paths(tree: Tree) -> list[Path | None]:
    """Tokens from the root to each node; None for what is absent or hangs below something absent."""
    found: list[Path | None] = [()]
    for token, parent, score in list(zip(*tree, strict=True))[1:]:
        above = found[parent]
        found.append(None if above is None or not score > -math.inf else (*above, token))
    return found


def merge(first: Tree, second: Tree) -> Tree:
    """The definition, node by node."""
    token, parent, score = (list(column) for column in first)
    lowest: dict[Path, int] = {}
    for number, path in enumerate(paths(first)):
        if path is not None:
            lowest.setdefault(path, number)
    renumbered = [0]
    score[0] = max(score[0], second[2][0])
    for node, path in list(enumerate(paths(second)))[1:]:
        token.append(second[0][node])
        if path is not None and path in lowest:
            renumbered.append(lowest[path])
            score[lowest[path]] = max(score[lowest[path]], second[2][node])
            parent.append(0)
            score.append(-math.inf)
        else:
            renumbered.append(len(token) - 1)
            parent.append(renumbered[second[1][node]])
            score.append(second[2][node])
    return token, parent, score


def best_of_paths(*trees: Tree) -> dict[Path, float]:
    """The greatest score of every path below the root."""
    best: dict[Path, float] = {}
    for tree in trees:
        for path, score in zip(paths(tree), tree[2], strict=True):
            if path:
                best[path] = max(best.get(path, -math.inf), score)
    return best


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=300, deadline=None)
@given(pairs())
@example(([([ROOT, 1, 1, 2], [0, 0, 0, 2], [1.0] * 4)], [([ROOT, 1, 2, 0], [0, 0, 1, 2], [1.0] * 4)]))
def test_is_the_literal_merge(rows: tuple[list[Tree], list[Tree]]) -> None:
    first, second = map(stack, rows)
    copies = [tensor.clone() for tensor in (*first, *second)]
    merged = merge_trees(first, second)
    expected = stack([merge(*row) for row in zip(*rows, strict=True)])
    for found, wanted in zip(merged, expected, strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    for before, after in zip(copies, (*first, *second), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("way", ["kernel", "compiled"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=pairs())
@example(([([ROOT, 1, 1, 2], [0, 0, 0, 2], [1.0] * 4)], [([ROOT, 1, 2, 0], [0, 0, 1, 2], [1.0] * 4)]))
@example(([([ROOT], [0], [math.nan])], [([ROOT, 1], [0, 0], [1.0, math.nan])]))
@example(([([ROOT, 1], [0, 0], [1.0, math.nan])], [([ROOT], [0], [math.nan])]))
def test_is_the_twin(request: pytest.FixtureRequest, way: str, rows: tuple[list[Tree], list[Tree]]) -> None:
    assert_is_twin(request, way, *map(stack, rows))


def assert_is_twin(request: pytest.FixtureRequest, way: str, first: Trees, second: Trees) -> None:
    device = request.getfixturevalue("kernel_device") if way == "kernel" else torch.device("cpu")
    moved = [tuple(tensor.to(device) for tensor in tree) for tree in (first, second)]
    alone = nullcontext() if way == "kernel" else request.getfixturevalue("compiled")(module)
    with alone, request.getfixturevalue("poisoned")():
        merged = (merge_trees_kernel if way == "kernel" else merge_trees)(*moved)
    for found, wanted in zip(merged, merge_trees_twin(first, second), strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("way", ["kernel", "compiled"])
@pytest.mark.parametrize("width", [(MAX_WIDTH, MAX_WIDTH), (33, 16), (5, 63)])
@pytest.mark.parametrize("deep", [False, True])
def test_is_the_twin_at_full_size(request: pytest.FixtureRequest, way: str, width: tuple[int, int], deep: bool) -> None:
    assert_is_twin(request, way, *full_size(width, deep))


def full_size(width: tuple[int, int], deep: bool) -> tuple[Trees, Trees]:
    """Deep: chains with some second children; else trees that are wide.  Few tokens, so that many paths are shared."""
    torch.manual_seed(sum(width))

    def tree(nodes: int) -> Trees:
        before = torch.arange(nodes)
        parent = (
            (before - 1 - torch.randint(0, 2, (2, nodes)))
            if deep
            else torch.randint(0, 99, (2, nodes)) % before.clamp(min=1)
        )
        score = torch.randint(0, 30, (2, nodes)) / 16
        token = torch.randint(0, 40, (2, nodes)).clamp(min=38) if deep else torch.randint(0, 3, (2, nodes))
        return token, parent.clamp(min=0), torch.where(score > 0, score, -math.inf)

    return tree(width[0]), tree(width[1])


@pytest.mark.parametrize("width", [5, MAX_WIDTH + 1])
def test_whatever_the_twin_takes_a_gpu_takes(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Trees that lie apart in memory, and wider ones than the kernel takes."""
    monkeypatch.setattr(module, "use_triton", lambda *tensors: True)
    first, second = stack([chain([1] * (width - 1))]), stack([chain([1, 2]), chain([3, 1])])
    apart = tuple(part.expand(2, -1).to(kernel_device) for part in first)
    made = merge_trees(apart, tuple(part.to(kernel_device) for part in second))
    for found, wanted in zip(made, merge_trees_twin(tuple(part.expand(2, -1) for part in first), second), strict=True):
        assert torch.equal(found.cpu(), wanted)


def test_kernel_names_what_it_cannot_take(kernel_device: torch.device) -> None:
    def call(widths: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
        ids = [torch.zeros(1, width, dtype=torch.int64, device=kernel_device) for width in widths]
        merge_trees_kernel(*((one, one, one.to(dtype)) for one in ids))

    with pytest.raises(ValueError, match="a tree may have 64 nodes, the root included, but these have 4 and 65"):
        call((4, MAX_WIDTH + 1))
    with pytest.raises(ValueError, match=r"the first tree's score must be torch\.float32"):
        call((4, 5), torch.float64)
    with pytest.raises(ValueError, match="second tree's token, parent and score must be"):
        merge_trees_kernel(stack([chain([1, 2])]), stack([chain([1]), chain([2])]))


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_has_the_paths_of_both_and_no_others(rows: tuple[list[Tree], list[Tree]]) -> None:
    _, parent, _ = merged = merge_trees(*map(stack, rows))
    assert (parent[:, 0] == 0).all()
    assert ((parent >= 0) & (parent < torch.arange(parent.shape[1]).clamp(min=1))).all()
    for union, *both in zip(unstack(merged), *rows, strict=True):
        assert best_of_paths(union) == best_of_paths(*both)
        repeats = sum(len(found) - len(set(found)) for found in map(paths, both))
        live = [path for path in paths(union) if path is not None]
        assert len(live) - len(set(live)) <= repeats


@settings(max_examples=80, deadline=None)
@given(pairs())
def test_pack_tree_takes_the_union(rows: tuple[list[Tree], list[Tree]]) -> None:
    """With rows for all, the packed forest has exactly the union's paths."""
    first, second = map(stack, rows)
    merged = merge_trees(first, second)
    S, W = merged[0].shape
    with_trash = [torch.cat([tensor, tensor[:1]]) for tensor in merged]
    packed = pack_tree_twin(*with_trash, torch.arange(S + 1) < S, torch.ones(S + 1).long(), S * W)
    for slot, both in enumerate(zip(*rows, strict=True)):
        start, count = int(packed.first_row[slot]), int(packed.row_count[slot])
        found: list[Path] = [()]
        for row in range(start + 1, start + count):
            above = int(packed.parent[row]) - start
            assert 0 <= above < row - start
            found.append((*found[above], int(packed.token[row])))
        assert set(found) == {(), *best_of_paths(*both)}


def chain(tokens: list[int]) -> Tree:
    return [ROOT, *tokens], [0, *range(len(tokens))], [1.0] * (len(tokens) + 1)


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 62, 63])
@pytest.mark.parametrize("longer", [0, 1, 20])
def test_chains_share_what_comes_before_their_difference(length: int, longer: int) -> None:
    """Paths agree from the difference down too, which tells comparing whole paths from comparing their ends."""
    for difference in {0, 1, length // 2, length - 1} & set(range(length)):
        first = [4] * length
        second = first[:difference] + [5] + [4] * (length + longer - difference - 1)
        for one, other in ((first, second), (second, first)):
            found = merge_trees(stack([chain(one)]), stack([chain(other)]))
            expected = stack([merge(chain(one), chain(other))])
            for left, right in zip(found, expected, strict=True):
                assert torch.equal(left, right)
            assert (found[2] > -math.inf).sum() == 1 + len(one) + len(other) - difference


@pytest.mark.usefixtures("cpu_path")
def test_children_hang_on_the_node_that_takes_over_and_the_larger_score_stays() -> None:
    first = stack([([ROOT, 1, 2], [0, 0, 0], [1.0, 0.5, 0.25])])
    second = stack([([ROOT, 2, 3, 1], [0, 0, 1, 0], [1.0, 0.75, 0.5, 0.125])])
    token, parent, score = merge_trees(first, second)
    assert token.tolist() == [[ROOT, 1, 2, 2, 3, 1]]
    assert parent.tolist() == [[0, 0, 0, 0, 2, 0]]
    assert score.tolist() == [[1.0, 0.5, 0.75, -math.inf, 0.5, -math.inf]]


@pytest.mark.usefixtures("cpu_path")
def test_absent_nodes_do_not_match() -> None:
    """Neither does what hangs below them."""
    first = stack([([ROOT, 2, 1], [0, 0, 1], [1.0, -math.inf, 0.5])])
    second = stack([([ROOT, 2, 1], [0, 0, 1], [1.0, -math.inf, 0.5])])
    _, parent, score = merge_trees(first, second)
    assert parent.tolist() == [[0, 0, 1, 0, 3]]
    assert score.tolist() == [[1.0, -math.inf, 0.5, -math.inf, 0.5]]


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("token", [-3, -2, -1, 0, ROOT])
def test_no_token_passes_for_the_root_or_for_an_absent_node(token: int) -> None:
    absent, present = (stack([([ROOT, token], [0, 0], [1.0, score])]) for score in (-math.inf, 0.5))
    assert merge_trees(absent, present)[2].tolist() == [[1.0, -math.inf, 0.5]]
    assert merge_trees(present, absent)[2].tolist() == [[1.0, 0.5, -math.inf]]
    assert merge_trees(present, present)[2].tolist() == [[1.0, 0.5, -math.inf]]


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12).flatmap(trees))
def test_a_root_alone_changes_nothing(tree: Tree) -> None:
    alone: Tree = ([ROOT], [0], [tree[2][0]])
    for merged in (merge_trees(stack([tree]), stack([alone])), merge_trees(stack([alone]), stack([tree]))):
        for left, right in zip(merged, stack([tree]), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def test_needs_no_data_on_the_host() -> None:
    with FakeTensorMode():
        first, second = ((torch.zeros(3, W).long(), torch.zeros(3, W).long(), torch.zeros(3, W)) for W in (9, 17))
        token, parent, score = merge_trees(first, second)
    assert token.shape == parent.shape == score.shape == (3, 25)
    assert (token.dtype, parent.dtype, score.dtype) == (torch.int64, torch.int64, torch.float32)


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("parent", [-1, 9, 2**40])
def test_parents_beyond_the_tree_are_an_error_of_torchs(parent: int) -> None:
    good, bad = stack([chain([1, 2])]), stack([([ROOT, 1, 2], [0, 0, parent], [1.0] * 3)])
    for first, second in ((good, bad), (bad, good)):
        with pytest.raises(RuntimeError, match="out of bounds"):
            merge_trees(first, second)


def test_refuses_trees_that_do_not_fit() -> None:
    tree, other = stack([chain([1, 2])]), stack([chain([1]), chain([2])])
    with pytest.raises(ValueError, match=r"second tree's token, parent and score must be \[1, 2\], not \[2, 2\]"):
        merge_trees(tree, other)
    with pytest.raises(
        ValueError, match=r"first tree's token, parent and score must be \[1, 3\], not \[1, 3\], \[1, 2\]"
    ):
        merge_trees((tree[0], tree[1][:, :2], tree[2]), tree)
