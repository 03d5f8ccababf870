"""accept against a literal walk over dictionaries; what is cut, kept and left alone; twin against Triton kernel."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels import accept as module
from redraft.kernels.accept import LENGTH, RUNNING, STOP, Committed, accept, accept_kernel, accept_twin
from redraft.kernels.pack_tree import pack_tree_twin
from redraft.kernels.rows import Rows


@dataclass
class Round:
    """One round's arguments; ``copy`` before running, for the state is written to."""

    rows: Rows
    choice: Tensor
    tokens: Tensor
    length: Tensor
    limit: Tensor
    active: Tensor
    ends: Tensor

    def arguments(
        self, device: torch.device | str = "cpu"
    ) -> tuple[Rows, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Fresh copies, in ``accept``'s order."""
        rows = Rows(*(getattr(self.rows, field.name).to(device) for field in dataclasses.fields(Rows)))
        state = (self.choice, self.tokens, self.length, self.limit, self.active)
        # as the round does it: the first columns of a wider table, here of one that ends everything
        wider = torch.cat((self.ends, torch.zeros_like(self.ends[:, :1])), 1).to(device)
        return (rows, *(x.clone().to(device) for x in state), wider[:, :-1])  # type: ignore[return-value]


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """1 to 5 slots with trees of up to 16 nodes over two or three tokens: runs and duplicate siblings are common."""
    S, W, vocab = draw(st.integers(1, 5)), draw(st.integers(1, 16)), draw(st.integers(2, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    g = torch.Generator().manual_seed(seed)
    chains = draw(st.booleans())
    parent = torch.zeros(S + 1, W, dtype=torch.int64)
    for i in range(1, W):
        parent[:, i] = i - 1 if chains else torch.randint(0, i, (S + 1,), generator=g)
    active = torch.tensor([draw(st.sampled_from([True, True, True, False])) for _ in range(S)] + [False])
    length = torch.randint(1, 6, (S + 1,), generator=g)
    R = draw(st.integers(max(int(active.sum()), 1), S * W + 3))
    candidates = torch.randint(0, vocab, (S + 1, W), generator=g)
    rows = pack_tree_twin(candidates, parent, torch.rand(S + 1, W, generator=g), active, length, R)
    T = draw(st.integers(8, 24))
    limit = length + torch.randint(1, W + 4, (S + 1,), generator=g)
    if draw(st.booleans()):
        # a slot may be cancelled between packing and accepting
        active = active & (torch.rand(S + 1, generator=g) < 0.7)
    # real ones first
    width = draw(st.integers(0, 3))
    ends = torch.randint(0, vocab + 2, (S + 1, width), generator=g)
    ends[torch.arange(width) >= torch.randint(0, width + 1, (S + 1, 1), generator=g)] = -1
    choice = torch.randint(0, vocab, (R,), generator=g)
    if draw(st.booleans()):
        # a draft that is always right: every inner node chooses a child's token
        choice.scatter_(0, rows.parent[rows.depth > 0], rows.token[rows.depth > 0])
    tokens = torch.randint(0, vocab, (S + 1, T), generator=g)
    return Round(rows, choice, tokens, length, limit, active, ends)


def expected(r: Round) -> tuple[Committed, list[list[int]], list[int], list[bool]]:
    """The commit and the state after it, one slot and one token at a time."""
    S, W, T = len(r.length) - 1, r.rows.path.shape[1], r.tokens.shape[1]
    tokens, length, active = r.tokens.tolist(), r.length.tolist(), r.active.tolist()
    out: dict[str, list[list[int]]] = {"tokens": [], "path_row": []}
    numbers: dict[str, list[int]] = {"count": [], "accepted": [], "drafted": [], "finish": []}
    for slot in range(S + 1):
        committed: list[int] = []
        path: list[int] = []
        finish, count = RUNNING, int(r.rows.row_count[slot])
        node: int | None = int(r.rows.first_row[slot]) if active[slot] and count else None
        own = range(int(r.rows.first_row[slot]), int(r.rows.first_row[slot]) + count)
        while node is not None and finish == RUNNING:
            path.append(node)
            token = int(r.choice[node])
            committed.append(token)
            tokens[slot][length[slot]] = token
            length[slot] += 1
            if token in r.ends[slot].tolist():
                finish = STOP
            elif length[slot] == min(int(r.limit[slot]), T):
                finish = LENGTH
            children = [row for row in own if row != node and r.rows.parent[row] == node and r.rows.token[row] == token]
            node = children[0] if children else None
        if finish != RUNNING and node is not None:
            # the token that finished the slot was a drafted one
            path.append(node)
        active[slot] = active[slot] and finish == RUNNING
        accepted = max(len(path) - 1, 0)
        out["tokens"].append(committed + [-1] * (W - len(committed)))
        out["path_row"].append(path + [-1] * (W - len(path)))
        numbers["count"].append(len(committed))
        numbers["accepted"].append(accepted)
        numbers["drafted"].append(count - 1 if path else 0)
        numbers["finish"].append(finish)
    fields = {name: torch.tensor(value) for name, value in (*out.items(), *numbers.items())}
    return Committed(**fields), tokens, length, active


def assert_committed(got: Committed, want: Committed) -> None:
    """Field by field, naming the one that differs."""
    for field in dataclasses.fields(Committed):
        left, right = getattr(got, field.name).cpu(), getattr(want, field.name)
        assert left.dtype == torch.int64, field.name
        assert left.is_contiguous(), field.name
        assert torch.equal(left, right), f"{field.name}: {left.tolist()} is not {right.tolist()}"


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=250, deadline=None)
@given(rounds())
def test_is_the_literal_walk(r: Round) -> None:
    arguments = r.arguments()
    got = accept(*arguments)
    want, tokens, length, active = expected(r)
    assert_committed(got, want)
    assert arguments[2].tolist()[:-1] == tokens[:-1]
    assert arguments[3].tolist() == length
    assert arguments[5].tolist() == active
    assert torch.equal(arguments[4], r.limit)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(r=rounds())
def test_compiled_equals_twin(compiled, poisoned, r: Round) -> None:
    ours, twins = r.arguments(), r.arguments()
    with compiled(module), poisoned():
        got = accept(*ours)
    assert_committed(got, accept_twin(*twins))
    # but for the trash slot's, of which the twin makes use
    assert torch.equal(ours[2][:-1], twins[2][:-1])
    for one, other in zip(ours[3:], twins[3:], strict=True):
        assert torch.equal(one, other)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(r=rounds())
def test_kernel_equals_twin(kernel_device: torch.device, poisoned, r: Round) -> None:
    ours, twins = r.arguments(kernel_device), r.arguments()
    with poisoned():
        got = accept_kernel(*ours)
    assert_committed(got, accept_twin(*twins))
    assert torch.equal(ours[2].cpu()[:-1], twins[2][:-1])
    assert torch.equal(ours[3].cpu(), twins[3])
    assert torch.equal(ours[5].cpu(), twins[5])


def chain(limit: int = 100, eos: tuple[int, ...] = (), active: bool = True, T: int = 12) -> Round:
    """One slot of length 2 whose four-node chain 10, 11, 12, 13 is accepted as a whole; the bonus token is 14."""
    token = torch.tensor([[10, 11, 12, 13], [0, 0, 0, 0]])
    parent = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0]])
    on = torch.tensor([True, False])
    length = torch.tensor([2, 1])
    rows = pack_tree_twin(token, parent, torch.ones(2, 4), on, length, 6)
    choice = torch.tensor([11, 12, 13, 14, 11, 11])
    limits = torch.tensor([limit, limit])
    ends = torch.tensor([[*eos, -1], [11, *[-1] * len(eos)]])
    return Round(rows, choice, torch.full((2, T), 77), length, limits, on & active, ends)


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize(
    ("r", "tokens", "accepted", "finish"),
    [
        pytest.param(chain(), [11, 12, 13, 14], 3, RUNNING, id="whole chain and bonus"),
        pytest.param(chain(eos=(5, 12)), [11, 12], 2, STOP, id="end of sequence inside the accepted run"),
        pytest.param(chain(eos=(14,)), [11, 12, 13, 14], 3, STOP, id="the bonus token ends it"),
        pytest.param(chain(limit=4), [11, 12], 2, LENGTH, id="limit inside the accepted run"),
        pytest.param(chain(limit=6), [11, 12, 13, 14], 3, LENGTH, id="limit at the bonus token"),
        pytest.param(chain(limit=4, eos=(12,)), [11, 12], 2, STOP, id="both at one token"),
        pytest.param(chain(limit=3, eos=(12,)), [11], 1, LENGTH, id="limit before the end of sequence"),
        pytest.param(chain(T=5), [11, 12, 13], 3, LENGTH, id="end of the table"),
        pytest.param(chain(limit=2), [], 0, LENGTH, id="no room at all"),
        pytest.param(chain(active=False), [], 0, RUNNING, id="cancelled meanwhile"),
    ],
)
def test_cuts(r: Round, tokens: list[int], accepted: int, finish: int, kernel_device: torch.device) -> None:
    was_active = bool(r.active[0])
    for op, device in ((accept, "cpu"), (accept_kernel, kernel_device)):
        arguments = r.arguments(device)
        got = op(*arguments)
        count = len(tokens)
        assert got.tokens[0].tolist() == tokens + [-1] * (4 - count)
        assert (int(got.count[0]), int(got.accepted[0]), int(got.finish[0])) == (count, accepted, finish)
        assert int(got.drafted[0]) == (3 if was_active else 0)
        assert arguments[2][0].tolist() == [77, 77, *tokens] + [77] * (arguments[2].shape[1] - 2 - count)
        assert arguments[3].tolist() == [2 + count, 1]
        assert arguments[5].tolist() == [was_active and finish == RUNNING, False]


def test_twin_needs_no_data_on_the_host() -> None:
    with FakeTensorMode():
        ids = torch.zeros(4, 8, dtype=torch.int64)
        active, length = torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
        rows = pack_tree_twin(ids, ids.clone(), torch.zeros(4, 8), active, length, 12)
        choice, ends = torch.zeros(12, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64)
        tokens = torch.zeros(4, 64, dtype=torch.int64)
        committed = accept_twin(rows, choice, tokens, length, length.clone(), active, ends)
        assert committed.path_row.shape == committed.tokens.shape == (4, 8)
        assert committed.count.shape == (4,)


@pytest.mark.usefixtures("cpu_path")
def test_slots_rows_beyond_the_round_are_an_error_of_torchs() -> None:
    rows, *state = chain().arguments()
    with pytest.raises((RuntimeError, IndexError), match="out of"):
        accept(dataclasses.replace(rows, first_row=rows.first_row + 10**9), *state)


def test_kernel_names_the_argument_it_cannot_take(kernel_device: torch.device) -> None:
    rows, choice, tokens, length, limit, active, ends = chain().arguments(kernel_device)
    with pytest.raises(ValueError, match="choice has shape"):
        accept_kernel(rows, choice[:-1], tokens, length, limit, active, ends)
    with pytest.raises(ValueError, match=r"ends\[0\] must be torch\.int64"):
        accept_kernel(rows, choice, tokens, length, limit, active, ends.int())
    with pytest.raises(ValueError, match=r"ends has shape \[3, 2\]"):
        accept_kernel(rows, choice, tokens, length, limit, active, ends.new_zeros(3, 2))
    with pytest.raises(ValueError, match="tokens must be contiguous"):
        accept_kernel(rows, choice, tokens[:, ::2], length, limit, active, ends)
