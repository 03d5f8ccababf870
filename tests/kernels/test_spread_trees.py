"""spread_trees: every slot has its own tree or none, by the twin and by the kernel alike."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.spread_trees import spread_trees, spread_trees_kernel, spread_trees_twin

Inputs = tuple[Tensor, ...]
Op = Callable[..., tuple[Tensor, Tensor, Tensor]]


@st.composite
def engines(draw: st.DrawFn) -> Inputs:
    """Slots of which some are active, trees for some of these in any order, and more for other slots."""
    S, T, W = draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(1, 9))
    active = [draw(st.booleans()) for _ in range(S)]
    idle = [slot for slot in range(S) if not active[slot]] + [S]
    slot = [slot for slot in range(S) if active[slot] and draw(st.booleans())] + draw(
        st.lists(st.sampled_from(idle), max_size=3)
    )
    slot = draw(st.permutations(slot))
    N = len(slot)
    score = torch.tensor(draw(st.lists(st.sampled_from([1.0, 0.5, -math.inf, math.nan]), min_size=N * W)))[: N * W]
    return (
        torch.arange((S + 1) * T).view(S + 1, T) + 1000,
        torch.tensor([draw(st.integers(0, T)) for _ in range(S + 1)]),
        torch.tensor([*active, False]),
        torch.tensor(slot, dtype=torch.int64),
        torch.arange(N * W).view(N, W),
        torch.tensor([max(node - 1, 0) for node in range(W)]).repeat(N, 1),
        score.view(N, W),
    )


def assert_spread(op: Op, inputs: Inputs) -> None:
    """Slot by slot what the contract says."""
    tokens, length, active, slot, token, parent, score = inputs
    made = op(*inputs)
    assert [part.dtype for part in made] == [torch.int64, torch.int64, torch.float32]
    for s in range(len(active)):
        mine = [n for n in range(len(slot)) if slot[n] == s]
        if mine:
            assert any(torch.equal(made[0][s], token[n]) and torch.equal(made[1][s], parent[n]) for n in mine)
        else:
            assert (made[0][s] == tokens[s, max(int(length[s]) - 1, 0)]).all()
            assert (made[1][s] == 0).all()
        expected = torch.full_like(made[2][s], -math.inf)
        if active[s]:
            expected = score[mine[0]] if mine else torch.where(torch.arange(len(expected)) == 0, 1.0, expected)
        torch.testing.assert_close(made[2][s], expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=80, deadline=None)
@given(engines())
def test_every_slot_has_its_tree_or_none(inputs: Inputs) -> None:
    copies = [tensor.clone() for tensor in inputs]
    assert_spread(spread_trees, inputs)
    assert_spread(spread_trees_twin, inputs)
    for before, after in zip(copies, inputs, strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=engines())
def test_so_it_is_with_the_kernel(kernel_device: torch.device, poisoned, inputs: Inputs) -> None:
    def op(*inputs: Tensor) -> tuple[Tensor, ...]:
        with poisoned():
            return tuple(part.cpu() for part in spread_trees_kernel(*(one.to(kernel_device) for one in inputs)))

    assert_spread(op, inputs)


def test_needs_no_data_on_the_host() -> None:
    with FakeTensorMode():
        trees = torch.zeros(2, 6).long(), torch.zeros(2, 6).long(), torch.zeros(2, 6)
        made = spread_trees(
            torch.zeros(4, 9).long(), torch.zeros(4).long(), torch.zeros(4).bool(), trees[0][:, 0], *trees
        )
    assert [tuple(part.shape) for part in made] == [(4, 6)] * 3


def test_kernel_names_what_it_cannot_take(kernel_device: torch.device) -> None:
    def call(slots: int, width: int, dtype: torch.dtype) -> None:
        zeros = torch.zeros(2, 5, device=kernel_device)
        whole = zeros.long()
        state = torch.zeros(3, 4, device=kernel_device).long(), whole[0, :slots], torch.zeros_like(whole[0, :3]).bool()
        spread_trees_kernel(*state, whole[:, 0].contiguous(), whole, whole[:, :width].contiguous(), zeros.to(dtype))

    with pytest.raises(ValueError, match=r"length has shape \[2\], but \[3\] fits"):
        call(2, 5, torch.float32)
    with pytest.raises(ValueError, match=r"parent has shape \[2, 4\], but \[2, 5\] fits"):
        call(3, 4, torch.float32)
    with pytest.raises(ValueError, match=r"score must be torch\.float32"):
        call(3, 5, torch.float64)
