"""pack_tree against a literal re-derivation with lists, over random forests; twin against Triton kernel."""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels import pack_tree as module
from redraft.kernels.pack_tree import pack_tree, pack_tree_kernel, pack_tree_twin
from redraft.kernels.rows import Rows, cells

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]
SCORES = st.sampled_from([1.0, 0.5, 0.25, 0.25, 1e-30, 0.0, -0.0, -1.5, -math.inf, math.inf, math.nan])
"""Few values, so that ties are common; values no draft should give, because a broken draft gives them."""


@st.composite
def forests(draw: st.DrawFn, max_slots: int = 5, max_nodes: int = 16) -> Inputs:
    """Candidate trees of 1 to 5 slots; children may score above their parents and carry the same token."""
    S, W = draw(st.integers(1, max_slots)), draw(st.integers(1, max_nodes))
    token = [draw(st.lists(st.integers(0, 3), min_size=W, max_size=W)) for _ in range(S + 1)]
    parent = [[0] + [draw(st.integers(0, i - 1)) for i in range(1, W)] for _ in range(S + 1)]
    score = [draw(st.lists(SCORES, min_size=W, max_size=W)) for _ in range(S + 1)]
    active = [draw(st.booleans()) for _ in range(S)] + [False]
    length = [draw(st.integers(1, 20)) for _ in range(S + 1)]
    R = draw(st.integers(max(sum(active), 1), (S + 1) * W + 5))
    return (
        torch.tensor(token),
        torch.tensor(parent),
        torch.tensor(score, dtype=torch.float32),
        torch.tensor(active),
        torch.tensor(length),
        R,
    )


def expected(token: Tensor, parent: Tensor, score: Tensor, active: Tensor, length: Tensor, R: int) -> Rows:
    """The same by lists: rank, cut, number."""
    S, W = token.shape[0] - 1, token.shape[1]
    up = parent.tolist()

    def way(slot: int, node: int) -> list[int]:
        """Candidates from the root to ``node``."""
        return [*way(slot, up[slot][node]), node] if node else [0]

    ranked = []
    for slot in range(S):
        for node in range(W):
            scores = [score[slot, k].item() for k in way(slot, node)[1:]]
            present = active[slot] and not any(math.isnan(s) or s == -math.inf for s in scores)
            if present:
                # a root comes before a node that claims an infinite score
                ranked.append((node > 0, -min(scores, default=0.0), slot, node))
    chosen = sorted((slot, node) for *_, slot, node in sorted(ranked)[:R])
    row_of = {key: row for row, key in enumerate(chosen)}
    row_count = [sum(slot == s for slot, _ in chosen) for s in range(S + 1)]
    first_row = [sum(row_count[:s]) for s in range(S + 1)]
    columns: list[tuple[int, ...]] = []
    paths = []
    for slot, node in chosen:
        path = [row_of[slot, k] - first_row[slot] for k in way(slot, node)]
        depth = len(path) - 1
        mother = row_of[slot, up[slot][node]]
        columns.append(
            (
                int(token[slot, node]),
                slot,
                int(length[slot]) - 1 + depth,
                depth,
                mother,
                row_of[slot, node] - first_row[slot],
            )
        )
        paths.append(path + [-1] * (W - len(path)))
    for row in range(len(chosen), R):
        columns.append((0, S, 0, 0, row, 0))
        paths.append([0] + [-1] * (W - 1))
    token_, slot_, position, depth_, mother_, index = torch.tensor(columns).t().contiguous()
    tables = (torch.tensor(paths), torch.tensor(first_row), torch.tensor(row_count))
    return Rows(token_, slot_, position, depth_, mother_, index, *tables)


def on(device: torch.device, inputs: Inputs) -> Inputs:
    """The inputs on the kernel's device."""
    token, parent, score, active, length, R = inputs
    return token.to(device), parent.to(device), score.to(device), active.to(device), length.to(device), R


def assert_same(got: Rows, want: Rows) -> None:
    """Field by field, naming the one that differs."""
    for field in dataclasses.fields(Rows):
        left, right = getattr(got, field.name).cpu(), getattr(want, field.name)
        assert left.dtype == torch.int64, field.name
        assert left.is_contiguous(), field.name
        assert torch.equal(left, right), f"{field.name}: {left.tolist()} is not {right.tolist()}"


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=150, deadline=None)
@given(forests())
def test_is_the_literal_selection(inputs: Inputs) -> None:
    copies = [x.clone() for x in inputs[:-1]]
    assert_same(pack_tree(*inputs), expected(*inputs))
    for name, before, after in zip(("token", "parent", "score", "active", "length"), copies, inputs[:-1], strict=True):
        assert torch.equal(before.nan_to_num(7.0), after.nan_to_num(7.0)), f"{name} was written to"


@settings(max_examples=100, deadline=None)
@given(forests())
def test_selection_contains_every_ancestor_and_every_active_root(inputs: Inputs) -> None:
    parent, active, R = inputs[1], inputs[3], inputs[5]
    rows = pack_tree_twin(*inputs)
    for slot in range(len(active) - 1):
        first, count = int(rows.first_row[slot]), int(rows.row_count[slot])
        assert (count > 0) == bool(active[slot])
        for row in range(first, first + count):
            assert first <= rows.parent[row] <= row
            assert (rows.parent[row] == row) == (rows.depth[row] == 0) == (row == first)
            assert rows.depth[row] == 0 or rows.depth[rows.parent[row]] == rows.depth[row] - 1
    assert int(rows.row_count.sum()) == int((rows.slot < len(active) - 1).sum()) <= R
    assert parent.shape[1] >= int(rows.row_count.max())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=forests())
def test_compiled_equals_twin(compiled, poisoned, inputs: Inputs) -> None:
    with compiled(module), poisoned():
        got = pack_tree(*inputs)
    assert_same(got, pack_tree_twin(*inputs))


def crowd(S: int, W: int, R: int) -> Inputs:
    """Few different scores, so that the cut goes through ties, of unlike bits too, and inactive slots in between."""
    torch.manual_seed(R)
    parent = torch.randint(0, 10**6, (S + 1, W)) % torch.arange(W).clamp(min=1)
    score = torch.randint(-2, 40, (S + 1, W)) / 16
    score[score < 0] = -math.inf
    for at, odd in ((1, -0.0), (36, torch.finfo(torch.float32).max), (37, math.inf), (38, math.nan)):
        score[score == at / 16] = odd
    active = torch.rand(S + 1) < min(0.8, R / 100)
    active[S] = False
    return torch.randint(0, 2**40, (S + 1, W)), parent, score, active, torch.randint(1, 999, (S + 1,)), R


@pytest.mark.parametrize("R", [1, 63, 64, 65, 700, 2111, 5000])
def test_compiled_equals_twin_at_full_size(compiled, R: int) -> None:
    inputs = crowd(64, module.MAX_NODES, R)
    with compiled(module):
        got = pack_tree(*inputs)
    assert_same(got, pack_tree_twin(*inputs))


@pytest.mark.parametrize(("W", "R"), [(31, 80), (47, 512), (63, 130), (64, 2111)])
def test_kernel_equals_twin_where_nodes_are_ranked_block_after_block(
    kernel_device: torch.device, poisoned, W: int, R: int
) -> None:
    """More nodes than a block has, the last one partly filled, and the cut in any of them."""
    inputs = crowd(-(-module.BLOCK // W) + 5, W, R)
    with poisoned():
        got = pack_tree_kernel(*on(kernel_device, inputs))
    assert_same(got, pack_tree_twin(*inputs))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("block", [8, module.BLOCK])
@given(inputs=forests())
def test_kernel_equals_twin(kernel_device: torch.device, poisoned, block: int, inputs: Inputs) -> None:
    with pytest.MonkeyPatch.context() as patch, poisoned():
        patch.setattr(module, "BLOCK", block)
        got = pack_tree_kernel(*on(kernel_device, inputs))
    assert_same(got, pack_tree_twin(*inputs))


@pytest.mark.usefixtures("cpu_path")
def test_full_size_chain_and_many_padding_rows(kernel_device: torch.device) -> None:
    W = 64
    chain = torch.arange(-1, W - 1).clamp(min=0).repeat(3, 1)
    score = torch.linspace(1, 0.1, W).repeat(3, 1)
    active, length = torch.tensor([True, True, False]), torch.tensor([9, 4, 1])
    inputs = (torch.arange(3 * W).view(3, W), chain, score, active, length, 270)
    want = expected(*inputs)
    assert_same(pack_tree(*inputs), want)
    assert_same(pack_tree_kernel(*on(kernel_device, inputs)), want)


@pytest.mark.usefixtures("cpu_path")
def test_ties_go_to_the_lower_slot_then_to_the_lower_candidate(kernel_device: torch.device) -> None:
    """-0 ties with 0, although its bits do not, and what outscores its parent ties with the parent."""
    parent = torch.tensor([[0, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, 0]])
    score = torch.tensor([[1.0, -0.0, 0.0, 9.0], [1.0, 0.0, -0.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    active, length = torch.tensor([True, True, False]), torch.tensor([1, 1, 1])
    for R, chosen in ((4, [[0, 1], [0, 3]]), (5, [[0, 1, 2], [0, 3]]), (6, [[0, 1, 2, 3], [0, 3]])):
        inputs = (torch.arange(4).repeat(3, 1), parent, score, active, length, R)
        for rows in (pack_tree(*inputs), pack_tree_kernel(*on(kernel_device, inputs))):
            assert [rows.token[rows.slot == slot].tolist() for slot in (0, 1)] == chosen


@pytest.mark.usefixtures("cpu_path")
def test_an_infinite_score_counts_as_the_greatest_number(kernel_device: torch.device) -> None:
    parent = torch.zeros(2, 3, dtype=torch.int64)
    score = torch.tensor([[1.0, torch.finfo(torch.float32).max, math.inf]]).repeat(2, 1)
    inputs = (torch.arange(3).repeat(2, 1), parent, score, torch.tensor([True, False]), torch.tensor([1, 1]), 2)
    for rows in (pack_tree(*inputs), pack_tree_kernel(*on(kernel_device, inputs))):
        assert rows.token.tolist() == [0, 1]


@pytest.mark.usefixtures("cpu_path")
def test_budget_goes_to_the_slot_whose_draft_is_surer() -> None:
    parent = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 0, 0]])
    score = torch.tensor([[1.0, 0.2, 0.1], [1.0, 0.9, 0.8], [0.0, 0.0, 0.0]])
    rows = pack_tree(parent, parent, score, torch.tensor([True, True, False]), torch.tensor([3, 5, 1]), 4)
    assert rows.slot.tolist() == [0, 1, 1, 1]
    assert rows.position.tolist() == [2, 4, 5, 6]


@pytest.mark.parametrize("R", [4, 40])
def test_twin_needs_no_data_on_the_host(R: int) -> None:
    with FakeTensorMode():
        token, parent = torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, 8, dtype=torch.int64)
        active, length = torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
        rows = pack_tree_twin(token, parent, torch.zeros(4, 8), active, length, R)
        assert rows.path.shape == (R, 8)
        assert rows.token.shape == (R,)
        assert rows.row_count.shape == (4,)


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_parents_beyond_the_tree_are_an_error_of_torchs(wrong: int) -> None:
    parent = torch.tensor([[0, 0, wrong], [0, 0, 0]])
    with pytest.raises(RuntimeError, match="out of bounds"):
        pack_tree(parent, parent, torch.ones(2, 3), torch.tensor([True, False]), torch.tensor([3, 1]), 4)


def test_kernel_names_the_argument_it_cannot_take(kernel_device: torch.device) -> None:
    def call(W: int, score_dtype: torch.dtype, slots: int) -> None:
        ids = torch.zeros(3, W, dtype=torch.int64, device=kernel_device)
        active = torch.zeros(3, dtype=torch.bool, device=kernel_device)
        length = torch.zeros(slots, dtype=torch.int64, device=kernel_device)
        pack_tree_kernel(ids, ids, ids.to(score_dtype), active, length, 4)

    with pytest.raises(ValueError, match="cand_token has 65 columns"):
        call(module.MAX_NODES + 1, torch.float32, 3)
    with pytest.raises(ValueError, match=r"cand_score must be torch\.float32"):
        call(8, torch.float64, 3)
    with pytest.raises(ValueError, match="length has shape"):
        call(8, torch.float32, 2)


def test_cells_follow_the_page_table_and_padding_goes_to_cell_zero() -> None:
    page_table = torch.tensor([[7, 2], [3, 9], [5, 5]])
    slot = torch.tensor([0, 0, 1, 1, 2, 2])
    logical = torch.tensor([0, 5, 3, 4, 0, 7])
    assert cells(page_table, slot, logical, 4).tolist() == [28, 9, 15, 36, 0, 0]
