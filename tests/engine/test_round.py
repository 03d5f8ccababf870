"""The round looks at no data: under FakeTensorMode, tensors have shapes and no values, and reading one fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from redraft.drafts.base import Drafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.attention import cpu_attention, twin_attention
from redraft.kernels.linear import Linear
from redraft.server.engine.round import Plan, run_round
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.weights import Layer, Weights, load_weights

PLAN = Plan(rows=8, context_bound=200, requests=2, sampled=True, filtered=True)


def fake_parts(folder: Path, nodes: int) -> tuple[DeviceState, Target, Drafter]:
    """State, target and drafter without values."""
    spec, cpu = read_spec(folder), torch.device("cpu")
    with unset_fake_temporarily():
        weights = load_weights(folder, spec, cpu, torch.float32)
    sizes = {"slots": 2, "pages": 4, "max_model_len": 256, "tree_rows": nodes + 1, "prefill_chunk": 64}
    state = DeviceState(spec, cpu, torch.float32, **sizes)
    target = Target(spec, _without_values(weights), 512)
    drafter: Drafter = NgramDrafter(2, spec.vocab, cpu, nodes) if nodes else NoDrafter()
    return state, target, drafter


def _without_values(weights: Weights) -> Weights:
    """The same shapes as fake tensors."""

    def linear(real: Linear) -> Linear:
        bias = None if real.bias is None else torch.empty(real.bias.shape)
        return Linear(torch.empty(real.weight.shape), bias)

    def fake(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return torch.empty(part.shape, dtype=part.dtype)
        return linear(part) if isinstance(part, Linear) else part

    def layer(real: Layer) -> Layer:
        return Layer(**{field.name: fake(getattr(real, field.name)) for field in dataclasses.fields(real)})

    return Weights(fake(weights.embedding), tuple(map(layer, weights.layers)), fake(weights.norm), fake(weights.head))


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocked weights and compiled C exist for real tensors only; the round's structure is the same without them."""
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    monkeypatch.setattr("redraft.kernels.layer_ops.load_fused", lambda: None)
    monkeypatch.setattr("redraft.kernels.attention.load_fused", lambda: None)


@pytest.mark.parametrize("nodes", [0, 7])
def test_no_value_on_the_host_depends_on_a_token(nodes: int, random_target: Callable[[str], Path]) -> None:
    folder = random_target("llama")
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(folder, nodes)
        for _ in range(2):
            committed = run_round(state, target, drafter, PLAN, twin_attention)
    assert committed.tokens.shape == (3, nodes + 1)
    assert committed.count.shape == (3,)


def test_the_check_notices_an_op_that_reads(random_target: Callable[[str], Path]) -> None:
    with FakeTensorMode():
        state, target, drafter = fake_parts(random_target("llama"), 7)
        # the CPU's attention takes its spans from memory: that is just what must not happen in a graph
        with pytest.raises(DataDependentOutputException):
            run_round(state, target, drafter, PLAN, cpu_attention)
