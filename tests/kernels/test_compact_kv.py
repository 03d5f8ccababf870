"""compact_kv against a literal copy of one node at a time; nothing else may change; twin against CPU op and kernel."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.accept import Committed, accept_twin
from redraft.kernels.compact_kv import compact_kv, compact_kv_kernel, compact_kv_twin
from redraft.kernels.pack_tree import pack_tree_twin
from redraft.kernels.rows import Rows, cells


@dataclass
class Case:
    """A cache in which every cell differs from every other, and a commit."""

    kv: Tensor
    page_table: Tensor
    base: Tensor
    rows: Rows
    committed: Committed
    page_size: int

    def to(self, device: torch.device) -> "Case":
        """A copy."""
        rows = Rows(*(getattr(self.rows, name).to(device) for name in Rows.__slots__))
        committed = Committed(*(getattr(self.committed, name).to(device) for name in Committed.__slots__))
        kv = self.kv.to(device, copy=True)
        return Case(kv, self.page_table.to(device), self.base.to(device), rows, committed, self.page_size)


def make(S: int, W: int, seed: int, tree: str, page_size: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Trees whose drafts are right, so that paths are long; pages in random order.

    A comb's nodes have two children, of which the second goes on: an accepted node's index is twice its depth.
    """
    g = torch.Generator().manual_seed(seed)
    parent = torch.zeros(S + 1, W, dtype=torch.int64)
    for i in range(1, W):
        grown = torch.randint(max(0, i - 3), i, (S + 1,), generator=g)
        parent[:, i] = {"chain": i - 1, "comb": (i - 1) // 2 * 2, "random": grown}[tree]  # type: ignore[assignment]
    active = torch.rand(S + 1, generator=g) < 0.8
    active[S] = False
    length = torch.randint(1, 2 * page_size + 2, (S + 1,), generator=g)
    candidates = torch.randint(0, 5, (S + 1, W), generator=g) if tree == "random" else torch.arange(W).repeat(S + 1, 1)
    rows = pack_tree_twin(candidates, parent, torch.ones(S + 1, W), active, length, S * W + 3)
    choice = torch.zeros_like(rows.token)
    inner = rows.depth > 0
    # of a node's children the last one is chosen, so indices outrun depths
    choice.scatter_reduce_(0, rows.parent[inner], torch.arange(len(choice))[inner], "amax", include_self=False)
    choice = rows.token[choice]
    base = length - 1
    tokens = torch.zeros(S + 1, 4 * page_size + W, dtype=torch.int64)
    limit = torch.full_like(length, tokens.shape[1])
    committed = accept_twin(rows, choice, tokens, length, limit, active, torch.full((len(length), 1), 99))
    P = (2 * page_size + 1 + W) // page_size + 1
    page_table = torch.cat([1 + torch.randperm(S * P, generator=g).view(S, P), torch.zeros(1, P, dtype=torch.int64)])
    shape = (2, 2, (S * P + 1) * page_size, 1, 3)
    cell_number = torch.arange(shape[2]).view(1, 1, -1, 1, 1)
    kv = (cell_number % 251 + torch.randint(0, 4, shape, generator=g) / 4).to(dtype)
    return Case(kv, page_table, base, rows, committed, page_size)


CASES = st.builds(
    make,
    st.integers(1, 5),
    st.integers(1, 16),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["chain", "comb", "random"]),
    st.sampled_from([1, 4, 64]),
)


def expected(c: Case) -> Tensor:
    """Accepted nodes copied one by one out of an untouched copy."""
    old, new = c.kv.clone(), c.kv.clone()

    def cell(slot: int, logical: int) -> int:
        return int(c.page_table[slot, logical // c.page_size]) * c.page_size + logical % c.page_size

    for slot in range(len(c.base) - 1):
        for depth in range(1, int(c.committed.accepted[slot]) + 1):
            index = int(c.rows.index[c.committed.path_row[slot, depth]])
            base = int(c.base[slot])
            new[:, :, cell(slot, base + depth)] = old[:, :, cell(slot, base + index)]
    return new


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_twin_and_cpu_op_are_the_literal_copy(c: Case) -> None:
    want = expected(c)
    for op in (compact_kv_twin, compact_kv):
        kv = c.kv.clone()
        op(kv, c.page_table, c.rows, c.committed, c.page_size)
        assert torch.equal(kv, want), op.__name__


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(c=CASES)
def test_kernel_equals_twin(kernel_device: torch.device, c: Case) -> None:
    assert_kernel(kernel_device, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernel_moves_long_paths_of_wide_trees(kernel_device: torch.device, dtype: torch.dtype) -> None:
    c = make(1, 64, 3, "comb", page_size=16, dtype=dtype)
    assert int(c.committed.accepted.max()) > 16, "the path must outgrow what the kernel holds at a time"
    assert_kernel(kernel_device, c)


def assert_kernel(device: torch.device, c: Case) -> None:
    """The kernel's cache is the literal copy's."""
    there = c.to(device)
    compact_kv_kernel(there.kv, there.page_table, there.rows, there.committed, there.page_size)
    assert torch.equal(there.kv.cpu(), expected(c))


def test_overlapping_moves_read_before_they_write() -> None:
    """Path 0, 2, 3, 5: cells 2 and 3 are read for depths 1 and 2, and 3 is written for depth 3."""
    token = torch.tensor([[0, 1, 2, 3, 1, 4], [0] * 6])
    parent = torch.tensor([[0, 0, 0, 2, 0, 3], [0] * 6])
    on = torch.tensor([True, False])
    length = torch.tensor([1, 1])
    rows = pack_tree_twin(token, parent, torch.ones(2, 6), on, length, 6)
    choice = torch.tensor([2, 9, 3, 4, 9, 9])
    committed = accept_twin(
        rows, choice, torch.zeros(2, 20, dtype=torch.int64), length.clone(), length + 10, on, torch.tensor([[99], [99]])
    )
    kv = torch.arange(24.0).view(1, 1, 24, 1, 1).repeat(1, 2, 1, 1, 1)
    compact_kv(kv, torch.tensor([[1, 2], [0, 0]]), rows, committed, 8)
    want = list(range(24))
    want[9], want[10], want[11] = 10, 11, 13
    assert kv[0, 0].flatten().tolist() == kv[0, 1].flatten().tolist() == want


def test_nodes_land_where_attention_will_look() -> None:
    c = make(3, 9, 5, "comb", page_size=4)
    live = c.committed.path_row >= 0
    slot = torch.arange(4).unsqueeze(1).expand_as(live)[live]
    depth = torch.arange(9).expand_as(live)[live]
    before = cells(c.page_table, slot, c.base[slot] + c.rows.index[c.committed.path_row[live]], 4)
    after = cells(c.page_table, slot, c.base[slot] + depth, 4)
    assert (before != after).any()
    kv = c.kv.clone()
    compact_kv(kv, c.page_table, c.rows, c.committed, 4)
    assert torch.equal(kv[:, :, after], c.kv[:, :, before])


def test_twin_and_cpu_op_need_no_data_on_the_host() -> None:
    with FakeTensorMode():
        ids, kv = torch.zeros(4, 8, dtype=torch.int64), torch.zeros(2, 2, 64, 1, 4)
        one, active = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
        rows = pack_tree_twin(ids, ids.clone(), torch.zeros(4, 8), active, one, 12)
        committed = accept_twin(rows, rows.token, ids.clone(), one, one.clone(), active, ids.clone())
        compact_kv_twin(kv, ids, rows, committed, 16)
        compact_kv(kv, ids, rows, committed, 16)
        assert kv.shape == (2, 2, 64, 1, 4)


def test_cpu_op_tells_torch_what_it_writes() -> None:
    c = make(2, 6, 1, "comb", page_size=4)
    torch.library.opcheck(
        torch.ops.redraft.compact_kv_cpu.default,
        (
            c.kv,
            c.page_table,
            c.rows.index,
            c.rows.position,
            c.rows.first_row,
            c.committed.path_row,
            c.page_size,
        ),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_kernel_names_the_argument_it_cannot_take(kernel_device: torch.device) -> None:
    c = make(2, 4, 1, "chain", page_size=4).to(kernel_device)
    with pytest.raises(ValueError, match="kv must have 5 dimensions"):
        compact_kv_kernel(c.kv[0], c.page_table, c.rows, c.committed, 4)
    fewer = replace(c.rows, first_row=c.rows.first_row[:-1])
    with pytest.raises(ValueError, match="first_row 2: they must agree"):
        compact_kv_kernel(c.kv, c.page_table, fewer, c.committed, 4)
    narrow = replace(c.rows, position=c.rows.position.int())
    with pytest.raises(ValueError, match=r"rows\.position must be torch\.int64"):
        compact_kv_kernel(c.kv, c.page_table, narrow, c.committed, 4)
