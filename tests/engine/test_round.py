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
from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.attention import block_attention, cpu_attention, of_requests
from redraft.kernels.linear import Linear
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import TwinAttention
from redraft.server.engine.adjusting import Stages
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.round import Plan, run_prefill, run_round
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec, read_spec
from redraft.server.engine.target.weights import Layer, Weights, load_weights

PLAN = Plan(rows=8, context_bound=200, requests=2, sampled=True, filtered=True)


def fake_parts(folder: Path, kind: str, nodes: int) -> tuple[DeviceState, Target, Drafter]:
    """State, target and drafter without values."""
    spec, cpu = read_spec(folder), torch.device("cpu")
    with unset_fake_temporarily():
        weights = load_weights(folder, spec, cpu, torch.float32)
    drafter: Drafter = NoDrafter()
    if kind == "ngram":
        drafter = NgramDrafter(2, spec.vocab, cpu, nodes)
    elif kind.startswith("eagle3"):
        drafter = _fake_eagle3(spec, nodes)
    elif kind != "none":
        drafter = _fake_dflash(spec, nodes, pruned=kind == "pruned")
    if kind.endswith("merged"):
        drafter = MergedDrafter(drafter, NgramDrafter(2, spec.vocab, cpu, nodes))
    context = drafter.context
    tree_rows = max(drafter.max_nodes + 1, context.reach)
    sizes = {"slots": 2, "pages": 4, "max_model_len": 256, "tree_rows": tree_rows, "prefill": 8}
    state = DeviceState(spec, cpu, torch.float32, context=context, **sizes)
    target = Target(spec, _without_values(weights), 512)
    return state, target, drafter


class _Unread(Checkpoint):
    """A checkpoint without values has no hash."""

    version = "0"


def _fake_dflash(spec: TargetSpec, nodes: int, pruned: bool) -> DFlashDrafter:
    config = DFlashConfig(
        layers=2,
        hidden=spec.hidden,
        intermediate=48,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocab=spec.vocab,
        norm_eps=1e-5,
        rope_theta=1e4,
        block_size=6,
        mask_token_id=3,
        taps=(1, 0),
        target_layers=spec.layers,
        causal=pruned,
        draft_vocab=100 if pruned else 0,
    )
    tensors = {name: torch.empty(shape) for name, shape in config.shapes.items()}
    if pruned:
        tensors["d2t"] = torch.empty(100, dtype=torch.int64)
    embedding = torch.empty(spec.vocab, spec.hidden)
    own = 4 if pruned else 0
    return DFlashDrafter(_Unread(config, tensors, {}), embedding, embedding, 512, nodes, own_tokens=own)


def _fake_eagle3(spec: TargetSpec, nodes: int) -> Eagle3Drafter:
    config = Eagle3Config(
        hidden=spec.hidden,
        intermediate=48,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocab=spec.vocab,
        norm_eps=1e-5,
        rope_theta=1e4,
        taps=(1, 0),
        target_layers=spec.layers,
        draft_vocab=100,
    )
    tensors = {name: torch.empty(shape) for name, shape in config.shapes.items()}
    tensors["d2t"] = torch.empty(100, dtype=torch.int64)
    return Eagle3Drafter(_Unread(config, tensors, {}), torch.empty(spec.vocab, spec.hidden), 512, nodes)


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


WIDTHS = {"none": 1, "ngram": 8, "dflash": 8, "pruned": 8, "merged": 15, "eagle3": 8, "eagle3-merged": 15}


@pytest.mark.parametrize(("kind", "width"), WIDTHS.items())
@pytest.mark.parametrize("sampled", [False, True])
def test_no_value_on_the_host_depends_on_a_token(
    kind: str, width: int, sampled: bool, random_target: Callable[[str], Path]
) -> None:
    folder = random_target("llama")
    plan = dataclasses.replace(PLAN, sampled=sampled, filtered=sampled)
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(folder, kind, 7)
        for _ in range(2):
            committed = run_round(state, target, drafter, plan, block_attention).committed
    assert committed.tokens.shape == (3, width)
    assert committed.count.shape == (3,)


@pytest.mark.parametrize("scored", [1, 2])
def test_scores_look_at_no_data(scored: int, random_target: Callable[[str], Path]) -> None:
    """Of the accepted paths, or of all rows where those are fewer."""
    plan = dataclasses.replace(PLAN, scored=scored, tops=4)
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(random_target("llama"), "ngram", 7)
        scores = run_round(state, target, drafter, plan, block_attention).scores
    assert scores is not None
    assert scores.scores.value.shape == (8, 4)
    assert scores.index.shape == (scored, 8)


class AllMasked:
    """A grammar that allows nothing."""

    def see(self, rows: Rows) -> None:
        self.rows = len(rows.token)

    def write(self, allowed: torch.Tensor, left_out: torch.Tensor) -> None:
        assert (len(allowed), left_out.shape) == (self.rows, (self.rows,))
        allowed.zero_()
        left_out.fill_(1)


@pytest.mark.parametrize("kind", ["none", "ngram"])
def test_the_logits_stage_looks_at_no_data(kind: str, random_target: Callable[[str], Path]) -> None:
    stages = Stages(penalised=True, biased=True, minimum=True)
    plan = dataclasses.replace(PLAN, stages=stages, guided=True)
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(random_target("llama"), kind, 7)
        adjusting = state.adjusting
        adjusting.penalties, adjusting.bias = adjusting._new_penalties(), adjusting._new_bias()
        committed = run_round(state, target, drafter, plan, block_attention, AllMasked()).committed
    assert committed.tokens.shape == (3, WIDTHS[kind])


@pytest.mark.parametrize("kind", ["none", "ngram", "merged"])
def test_forced_tokens_join_without_a_look(kind: str, random_target: Callable[[str], Path]) -> None:
    plan = dataclasses.replace(PLAN, forced=True)
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(random_target("llama"), kind, 7)
        state.forced = torch.full((3, 4), -1)
        committed = run_round(state, target, drafter, plan, block_attention).committed
    assert committed.tokens.shape == (3, WIDTHS[kind] + 4)


@pytest.mark.parametrize("kind", ["ngram", "dflash", "eagle3"])
def test_prefill_looks_at_no_data(kind: str, random_target: Callable[[str], Path]) -> None:
    folder = random_target("llama")
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(folder, kind, 7)
        plan = dataclasses.replace(PLAN, rows=0, requests=0, prefill=8, prefill_bound=69)
        chunks = Chunk(1, 64, 5), Chunk(0, 0, 2, scored=3)
        state.prefill.write(chunks, 8)
        assert run_prefill(state, target, drafter, plan, block_attention) == []
        _, scores = run_prefill(state, target, drafter, plan, block_attention, chunks)
        assert scores is not None
        assert scores.value.shape == (2, 3)
        state.prefill.write(chunks[:1], 8)
        beside = dataclasses.replace(plan, rows=5, requests=1, capped=True)
        committed, tree, *_ = run_round(state, target, drafter, beside, block_attention)
    assert committed.tokens.shape == tree.token.shape == (3, 8)


@pytest.mark.parametrize(("prefill", "requests"), [(0, 2), (8, None)])
def test_attention_is_told_of_how_many_requests_a_round_is(
    prefill: int, requests: int | None, random_target: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which its launches follow from on a GPU; of how many a prefill is nobody says."""
    told = []

    def paged(rows: Rows, pages: torch.Tensor, bound: int, first: int, *, requests: int | None) -> TwinAttention:
        told.append(requests)
        return TwinAttention(rows, pages, bound, first)

    monkeypatch.setattr("redraft.kernels.attention.use_triton", lambda *tensors: True)
    monkeypatch.setattr("redraft.kernels.attention.PagedAttention", paged)
    with FakeTensorMode(allow_non_fake_inputs=False):
        state, target, drafter = fake_parts(random_target("llama"), "ngram", 7)
        state.prefill.write((Chunk(1, 64, 5),), 8)
        run_round(state, target, drafter, dataclasses.replace(PLAN, prefill=prefill, prefill_bound=69), block_attention)
    assert told == [requests]
    assert of_requests(cpu_attention, 2) is cpu_attention


def test_the_check_notices_an_op_that_reads(random_target: Callable[[str], Path]) -> None:
    with FakeTensorMode():
        state, target, drafter = fake_parts(random_target("llama"), "ngram", 7)
        # the CPU's attention takes its spans from memory: that is just what must not happen in a graph
        with pytest.raises(DataDependentOutputException):
            run_round(state, target, drafter, PLAN, cpu_attention)
