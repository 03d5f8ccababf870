"""Serving an EAGLE-3 draft: its trees are those of the formulas, its context may come in pieces, by whatever rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from redraft.drafts.base import Bounds, Candidates, Passed
from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3 import Eagle3Drafter, context_of
from redraft.kernels.fused_cpu import load_fused

Make = Callable[..., Any]
"""Of an ``Eagle3Bench`` (conftest.py)."""


@pytest.fixture(autouse=True)
def _inference(one_thread: None) -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=["compiled", "torch"])
def _both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled kernels and as with ``REDRAFT_FUSED_CPU=0``."""
    if request.param == "torch":
        monkeypatch.setattr("redraft.kernels.attention.load_fused", lambda: None)
        monkeypatch.setattr("redraft.kernels.layer_ops.load_fused", lambda: None)
    elif load_fused() is None:
        pytest.skip("no C compiler here, so there are no fused kernels")


def paths(drafted: Candidates, slot: int) -> list[tuple[list[int], float]]:
    """Tokens from below the root and score of every node that is there, in the order of their numbers."""
    found: list[tuple[list[int], float]] = [([], 1.0)]
    for node in range(1, drafted.token.shape[1]):
        above = found[int(drafted.parent[slot, node])][0]
        found.append(([*above, int(drafted.token[slot, node])], float(drafted.score[slot, node])))
    return [(path, score) for path, score in found[1:] if score > -math.inf]


@pytest.mark.usefixtures("_both_kinds")
@pytest.mark.parametrize(
    "options",
    [
        {"branch": 1},
        {"branch": 1, "nodes": 2},
        {"tree_temperatures": (0.7, 1.0, 1.5, 2.0)},
        {"branch": 3, "nodes": 30, "kv_heads": 2, "draft_vocab": 97, "rope_theta": 50.0, "taps": (1, 3)},
        {"branch": 60, "nodes": 5, "steps": 2},
    ],
    ids=["chain", "short-chain", "tree", "whole-pool", "wider-than-nodes"],
)
def test_trees_are_those_of_the_formulas(make_eagle3: Make, options: dict[str, Any]) -> None:
    bench = make_eagle3(**options)
    bench.fill()
    drafted, drafter = bench.drafter.propose(bench.state, bench.bounds), bench.drafter
    for slot in bench.DRAFTING:
        wanted = bench.plain(slot).tree(bench.text(slot), drafter.steps, drafter.width, drafter.max_nodes)
        got = paths(drafted, slot)
        assert [path for path, _ in got] == [path for path, _ in wanted]
        for (_, score), (_, log) in zip(got, wanted, strict=True):
            assert score == pytest.approx(math.exp(log), rel=1e-3)


@pytest.mark.parametrize("branch", [1, 3])
def test_sampled_trees_lean_towards_the_noise_of_every_depth(make_eagle3: Make, branch: int) -> None:
    bench = make_eagle3(branch=branch, tree_temperatures=(0.8, 1.0, 1.2, 1.6))
    bench.fill()
    greedy = bench.drafter.propose(bench.state, bench.bounds)
    bench.state.sampling.temperature[[3, 5]] = torch.tensor([0.8, 1.3])
    bench.state.sampling.seed[[3, 5]] = torch.tensor([-5, 2**62 + 3])
    drafted, drafter = bench.drafter.propose(bench.state, replace(bench.bounds, sampled=True)), bench.drafter
    sizes = drafter.steps, drafter.width, drafter.max_nodes
    for slot, seed, temperature in ((3, -5, 0.8), (5, 2**62 + 3, 1.3)):
        wanted = bench.plain(slot).tree(bench.text(slot), *sizes, seed, temperature)
        got = paths(drafted, slot)
        assert [path for path, _ in got] == [path for path, _ in wanted]
        for (_, score), (_, log) in zip(got, wanted, strict=True):
            assert score == pytest.approx(math.exp(log), rel=1e-3)
        assert got != paths(greedy, slot), "the noise decides some"
    assert paths(drafted, 2) == paths(greedy, 2), "a greedy slot is the same beside sampled ones"


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("branch", "nodes", "real"), [(None, 9, 9), (1, 9, 4), (1, 2, 2), (3, 63, 30), (16, 63, 63)])
def test_protocol(make_eagle3: Make, branch: int | None, nodes: int, real: int, sampled: bool) -> None:
    bench = make_eagle3(branch=branch, nodes=nodes)
    bench.fill()
    state = bench.state
    state.sampling.temperature[2:4] = 0.8 * sampled
    kept = [t.clone() for t in (state.tokens, state.length, state.active, state.page_table)]
    drafted = bench.drafter.propose(state, Bounds(254, 5, sampled))
    for tensor, dtype in ((drafted.token, torch.int64), (drafted.parent, torch.int64), (drafted.score, torch.float32)):
        assert tensor.shape == (7, nodes + 1)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
    active = list(bench.LENGTHS)
    assert drafted.token[active, 0].tolist() == state.anchor[active, 0].tolist()
    assert ((drafted.token >= 0) & (drafted.token < 97)).all()
    assert (drafted.parent[:, 0] == 0).all()
    assert ((drafted.parent[:, 1:] < torch.arange(1, nodes + 1)) & (drafted.parent[:, 1:] >= 0)).all()
    assert (drafted.score[active, 0] == 1).all()
    assert (drafted.score[[1, 4, 6]] == -torch.inf).all()
    assert (drafted.score <= drafted.score.gather(1, drafted.parent)).all()
    there = drafted.score[:, 1:] > -torch.inf
    assert there[bench.DRAFTING].sum(1).tolist() == [real] * 3
    assert not there[0].any(), "before a text of one token there is no feature"
    assert set(drafted.token[bench.DRAFTING, 1:][there[bench.DRAFTING]].tolist()) <= set(bench.KEPT)
    if branch == 1:
        assert (drafted.parent[bench.DRAFTING, 1 : real + 1] == torch.arange(real)).all()
    for slot in bench.DRAFTING:
        every = [tuple(path) for path, _ in paths(drafted, slot)]
        assert len(set(every)) == len(every), "siblings differ"
    for tensor, copy in zip((state.tokens, state.length, state.active, state.page_table), kept, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.usefixtures("_both_kinds")
@pytest.mark.parametrize("branch", [1, 4])
def test_a_proposal_writes_no_further_than_it_says(make_eagle3: Make, branch: int) -> None:
    """And to no cell of committed text, and nothing that is no number."""
    bench = make_eagle3(branch=branch)
    bench.fill()
    before = bench.state.kv.clone()
    bench.drafter.propose(bench.state, bench.bounds)
    reach = bench.drafter.context.reach
    assert reach == 1 + 3 * branch
    own = torch.zeros(before.shape[2], dtype=torch.bool)
    own[0] = True
    for slot, length in bench.LENGTHS.items():
        behind = torch.arange(reach) + length - 1
        cell = bench.cell(torch.full_like(behind, slot), behind)
        own[cell] = True
        assert bench.state.kv[0][:, cell].isfinite().all()
    assert torch.equal(bench.state.kv[:, :, ~own].nan_to_num(7.0), before[:, :, ~own].nan_to_num(7.0))


@pytest.mark.usefixtures("_both_kinds")
def test_bounds_do_not_change_the_answer(make_eagle3: Make) -> None:
    bench = make_eagle3()
    bench.fill()
    tight = bench.drafter.propose(bench.state, bench.bounds)
    loose = bench.drafter.propose(bench.state, Bounds(context=270, requests=6))
    for slot in bench.LENGTHS:
        assert torch.equal(tight.token[slot], loose.token[slot])
        assert torch.equal(tight.parent[slot], loose.parent[slot])
    torch.testing.assert_close(tight.score, loose.score, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("_both_kinds")
def test_context_may_come_in_pieces(make_eagle3: Make) -> None:
    whole, pieces = make_eagle3(), make_eagle3()
    whole.fill()
    for slot, length in whole.LENGTHS.items():
        chunks = [list(range(start, min(start + 37, length - 1))) for start in range(0, length - 1, 37)]
        for chunk in chunks[:-1]:
            pieces.absorb(slot, chunk, padding=3)
        for position in chunks[-1] if chunks else []:
            pieces.absorb(slot, [position], padding=1)
    for slot, length in whole.LENGTHS.items():
        at = torch.arange(length - 1)
        cell = whole.cell(torch.full_like(at, slot), at)
        wanted = whole.state.kv[:, :, cell]
        assert wanted.isfinite().all()
        torch.testing.assert_close(pieces.state.kv[:, :, cell], wanted, rtol=1e-5, atol=1e-5)
        # nothing but the context has been written
        behind = torch.arange(9) + length - 1
        assert pieces.state.kv[:, :, pieces.cell(torch.full_like(behind, slot), behind)].isnan().all()
    drafted = [bench.drafter.propose(bench.state, bench.bounds) for bench in (whole, pieces)]
    assert torch.equal(drafted[0].token, drafted[1].token)


def test_a_rejected_row_leaves_no_trace_in_what_its_siblings_keep(make_eagle3: Make) -> None:
    """Two children of the anchor in one pass, each with a child: every pair is made of its own parent's feature."""
    bench, slot = make_eagle3(), 2
    root = bench.LENGTHS[slot] - 1
    bench.fill()
    token = torch.tensor([int(bench.state.tokens[slot, root]), 11, 13, 17, 19])
    parent, depth, index = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 1, 2, 2]), torch.arange(5)
    taps = torch.randn(5, 3, 40)
    row = torch.full((5,), slot)
    cell = bench.cell(row, root + index)
    before = torch.where(depth > 0, cell[parent], bench.cell(row, torch.tensor(root - 1).expand(5)))
    bench.drafter.absorb(Passed(taps, token, root + depth, cell, before), bench.state.kv)
    tree = bench.state.kv[:, :, cell]
    for chain in ([0, 1, 3], [0, 2, 4]):
        alone = make_eagle3()
        alone.fill()
        at = torch.tensor(chain)
        cell = alone.cell(row[:3], root + torch.arange(3))
        before = alone.cell(row[:3], root + torch.arange(3) - 1)
        alone.drafter.absorb(Passed(taps[at], token[at], root + torch.arange(3), cell, before), alone.state.kv)
        torch.testing.assert_close(tree[:, :, at], alone.state.kv[:, :, cell], rtol=1e-5, atol=1e-5)


def test_a_draft_of_other_sizes_is_refused_with_both(make_eagle3: Make) -> None:
    bench = make_eagle3()
    with pytest.raises(DraftError, match=r"97 tokens and hidden size 40, this one has 98 and 40"):
        Eagle3Drafter(bench.checkpoint, torch.zeros(98, 40), 300, 3)


def test_a_draft_without_taps_is_first_given_its_target(make_eagle3: Make) -> None:
    bench = make_eagle3()
    unsaid = replace(bench.checkpoint, config=replace(bench.config, taps=(), target_layers=0))
    with pytest.raises(DraftError, match="does not say which layers it taps"):
        context_of(unsaid, 3)
    assert context_of(unsaid.for_target(9), 3).taps == (1, 3, 5)


def test_memory_is_counted_as_it_is_taken(make_eagle3: Make) -> None:
    bench = make_eagle3()
    weights, context = bench.drafter.weights, bench.drafter.context
    products = [getattr(weights, name) for name in ("fuse", "qkv", "kv", "output", "gate_up", "down", "head")]
    norms = [weights.input_norm, weights.hidden_norm, weights.post_norm, weights.norm]
    numbers = sum(p.in_features * p.out_features for p in products) + sum(n.numel() for n in norms)
    assert context.weights == numbers
    assert (context.layers, context.kv_heads, context.head_dim) == (3, 1, 16), "a feature of 40 takes two layers of 32"
