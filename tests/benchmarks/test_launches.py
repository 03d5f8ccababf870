"""Launches of a round on a GPU, counted without one: whoever adds an op to a round sees what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from redraft.benchmarks import launches
from redraft.benchmarks.launches import CPU, NODES, count_launches, count_op, default_draft, launches_of
from redraft.benchmarks.shapes import TARGETS, draft_shape
from redraft.drafts.dflash_config import DFlashConfig
from redraft.kernels import chunk_attention, linear, matmul, paged_attention
from redraft.kernels.attention_partial import tickets
from redraft.kernels.matmul import workspace

pytest.importorskip("triton")
SPEC = TARGETS["SmolLM2-135M"]
LAYER = 5
"""Norm and projections with rotation and cells, attention, output, gate and up, down."""


def test_a_plain_step() -> None:
    # beside the layers: trees, rows, their cells, embedding, attention's list of items, head, sampling, acceptance
    found = count_launches(SPEC)
    assert found["kernels.matmul"] == 4 * SPEC.layers + 1
    assert sum(found.values()) == LAYER * SPEC.layers + 11


@pytest.mark.parametrize("sampled", [False, True])
def test_a_speculative_round(sampled: bool) -> None:
    draft = default_draft().config_as(DFlashConfig)
    found = count_launches(SPEC, draft, rows=1 + NODES, sampled=sampled)
    assert sum(found.values()) == LAYER * (SPEC.layers + draft.layers) + 27 + sampled
    # torch's own ops are the target's embedding and the taps, side by side, and the index that noise begins at
    ours = {name for name in found if not name.startswith("kernels.")}
    assert ours == {"server.engine.target.decoder"} | ({"drafts.dflash"} if sampled else set())


@pytest.mark.parametrize("name", ["Qwen3-8B", "Qwen3-1.7B"])
def test_a_verified_tree_of_more_heads(name: str) -> None:
    """Attention adds up in its own launch, for 16 rows are one request's; a given tree costs nothing but its commit."""
    spec = TARGETS[name]
    plain, tree = (launches_of(spec, rows=rows, lookup=False) for rows in (1, 16))
    assert plain is not None
    assert tree is not None
    assert sum(plain.values()) == LAYER * spec.layers + 11
    assert sum(tree.values()) == LAYER * spec.layers + 11
    many = launches_of(spec, requests=4, rows=16, lookup=False)
    assert many is not None
    assert many["kernels.sum_chunks"] == spec.layers
    assert tree["kernels.compact_kv"] == plain["kernels.spread_trees"] == 1


@pytest.mark.parametrize(
    ("name", "requests", "rows", "nodes", "lookup"),
    [("SmolLM2-135M", 1, 16, 15, True), ("Qwen3-1.7B", 4, 16, 15, True), ("Qwen3-1.7B", 1, 64, 63, False)],
)
def test_layers_need_not_all_be_counted(name: str, requests: int, rows: int, nodes: int, lookup: bool) -> None:
    spec = TARGETS[name]
    draft = draft_shape(spec)
    wanted = count_launches(spec, draft, requests=requests, rows=rows, nodes=nodes, lookup=lookup)
    assert launches_of(spec, draft, requests, rows, nodes, lookup) == wanted


def test_what_cannot_be_counted_is_not_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measurements are not to be lost for it."""

    def broken(*arguments: object, **options: object) -> None:
        raise TypeError("another version")

    monkeypatch.setattr(launches, "count_launches", broken)
    assert launches.launches_of.__wrapped__(SPEC) is None
    assert "TypeError: another version" in capsys.readouterr().out


def test_lookup_alone_is_one_launch_more_than_a_given_tree() -> None:
    given, lookup = (count_launches(SPEC, rows=16, lookup=found) for found in (False, True))
    assert lookup["kernels.ngram"] == 1
    assert sum(lookup.values()) == sum(given.values()) + 1


@pytest.mark.parametrize(
    ("op", "launched"),
    [
        (lambda x: x.reshape(8, 3), 0),
        (lambda x: x.t().reshape(24), 1),
        (lambda x: x.float(), 0),
        (lambda x: x.half(), 1),
        (lambda x: x.t().contiguous(), 1),
        (lambda x: torch.empty_like(x)[1:].chunk(2), 0),
        (lambda x: x.mul_(2), 1),
    ],
    ids=("reshape", "reshape that copies", "same type", "other type", "contiguous", "parts of nothing", "in place"),
)
def test_a_view_is_none_and_a_copy_is_one(op: Callable[[torch.Tensor], object], launched: int) -> None:
    """Of ops that return either, too."""

    def make() -> Callable[[], object]:
        x = torch.randn(3, 8)
        return lambda: op(x)

    assert count_op(make) == launched


def test_ops_are_counted_without_contents() -> None:
    def make() -> Callable[[], object]:
        x = torch.randn(3, 8)
        return lambda: x.view(24).sort().values + 1

    assert count_op(make) == 2


def test_nothing_without_contents_is_left_behind() -> None:
    before = workspace(CPU), tickets(CPU)
    count_launches(replace(SPEC, layers=1))
    after = workspace(CPU), tickets(CPU)
    # recorded rounds may hold the addresses of the real ones, so they have to stay where they are
    assert after[0][0] is before[0][0]
    assert after[1] is before[1]
    assert not any(isinstance(one, FakeTensor) for one in (*after[0], after[1]))
    assert linear.workspace is matmul.workspace is workspace
    assert chunk_attention.tickets is paged_attention.tickets is tickets


def test_layers_are_what_counts() -> None:
    few, many = (sum(count_launches(replace(SPEC, layers=layers)).values()) for layers in (2, 3))
    assert many - few == LAYER
