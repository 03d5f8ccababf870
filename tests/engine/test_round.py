"""The round looks at no data: under FakeTensorMode, tensors have shapes and no values, and reading one fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from redraft.drafts.base import Drafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.linear import Linear
from redraft.server.engine.round import Plan, cpu_attention, run_round, twin_attention
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.weights import load_weights

PLAN = Plan(rows=8, context_bound=200, sampled=True, filtered=True)


def fake_parts(folder: Path, nodes: int) -> tuple[DeviceState, Target, Drafter]:
    """State, target and drafter without values."""
    spec, cpu = read_spec(folder), torch.device("cpu")
    sizes = {"slots": 2, "pages": 4, "max_model_len": 256, "tree_rows": nodes + 1, "prefill_chunk": 64}
    state = DeviceState(spec, cpu, torch.float32, **sizes)
    target = Target(spec, load_weights(folder, spec, cpu, torch.float32), 512)
    drafter: Drafter = NgramDrafter(2, spec.vocab, cpu, nodes) if nodes else NoDrafter()
    return state, target, drafter


@pytest.mark.parametrize("nodes", [0, 7])
def test_no_value_on_the_host_depends_on_a_token(
    nodes: int, random_target: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_target("llama")
    # the blocked layout exists only for real tensors; the product's shape is the same
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(folder, nodes)
        assert not any(linear.packed for layer in target.weights.layers for linear in (layer.qkv, layer.down))
        for _ in range(2):
            committed = run_round(state, target, drafter, PLAN, twin_attention)
    assert committed.tokens.shape == (3, nodes + 1)
    assert committed.count.shape == (3,)


def test_the_check_notices_an_op_that_reads(
    random_target: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    with FakeTensorMode():
        state, target, drafter = fake_parts(random_target("llama"), 7)
        # the CPU's attention takes its spans from memory: that is just what must not happen in a graph
        with pytest.raises(DataDependentOutputException):
            run_round(state, target, drafter, PLAN, cpu_attention)


def test_a_linear_refuses_nothing_it_can_do() -> None:
    weight, x, residual = torch.randn(6, 5), torch.randn(3, 5), torch.randn(3, 6)
    expected = x @ weight.T + residual
    assert torch.allclose(Linear(weight)(x, residual), expected, atol=1e-5)
