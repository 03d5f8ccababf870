"""Two drafters fill one tree: nothing twice, nothing lost, and alone each is what it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.drafts.adversarial import RandomTreeDrafter
from redraft.drafts.base import NO_CONTEXT, Bounds, Candidates, Context, Drafter, DraftState, Passed, TokensOnly
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.pack_tree import pack_tree
from redraft.kernels.sample import SamplingTable

VOCAB, SLOTS = 50, 2
BOUNDS = Bounds(context=12, requests=1)
ABSENT = float("-inf")


def make_state() -> DraftState:
    """Slot 0 is in a loop, slot 1 is free, slot 2 is the trash slot."""
    tokens = torch.tensor([[4, 5, 6, 7, 4, 5, 6, 7, 4, 5], [9] * 10, [0] * 10])
    return DraftState(
        tokens=torch.cat((tokens, torch.zeros(3, 10, dtype=torch.int64)), 1),
        length=torch.tensor([10, 0, 0]),
        active=torch.tensor([True, False, False]),
        page_table=torch.zeros(3, 1, dtype=torch.int64),
        kv=torch.zeros(0, 2, 128, 1, 1),
        sampling=SamplingTable.greedy(SLOTS, "cpu"),
    )


class Fixed(TokensOnly):
    """Always proposes the same tree, given as (token, parent, score) below the root; notes what it absorbs."""

    def __init__(self, name: str, nodes: list[tuple[int, int, float]], context: Context = NO_CONTEXT) -> None:
        self.name, self.version, self.max_nodes = name, f"{name}1", len(nodes)
        self.nodes = nodes
        self.context = context
        self.absorbed = 0

    def absorb(self, passed: Passed, kv: Tensor) -> None:
        self.absorbed += len(passed.position)

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        token = torch.tensor([0] + [node[0] for node in self.nodes]).repeat(SLOTS + 1, 1)
        token[:, 0] = state.anchor[:, 0]
        score = torch.tensor([1.0] + [node[2] for node in self.nodes]).repeat(SLOTS + 1, 1)
        parent = torch.tensor([0] + [node[1] for node in self.nodes]).repeat(SLOTS + 1, 1)
        return Candidates(token, parent, score.masked_fill(~state.active.unsqueeze(1), ABSENT))


def paths(drafted: Candidates, slot: int = 0) -> dict[tuple[int, ...], float]:
    """Score of every node that there is, by the tokens on its way from the root; a path must not occur twice."""
    found: dict[tuple[int, ...], float] = {}
    own: list[tuple[int, ...]] = [()]
    for node in range(1, drafted.token.shape[1]):
        parent = int(drafted.parent[slot, node])
        assert parent < node
        own.append((*own[parent], int(drafted.token[slot, node])))
        score = float(drafted.score[slot, node])
        if score > ABSENT:
            assert own[-1] not in found
            found[own[-1]] = score
    return found


def test_the_union_has_every_path_once_with_the_better_score() -> None:
    first = Fixed("a", [(1, 0, 0.6), (2, 1, 0.5), (3, 0, 0.2)])
    second = Fixed("b", [(1, 0, 0.8), (7, 1, 0.4), (2, 1, 0.1), (8, 3, 0.05), (9, 0, ABSENT)])
    merged = MergedDrafter(first, second)
    drafted = merged.propose(make_state(), BOUNDS)
    assert drafted.token.shape == drafted.parent.shape == drafted.score.shape == (SLOTS + 1, 9)
    expected = {(1,): 0.8, (1, 2): 0.5, (3,): 0.2, (1, 7): 0.4, (1, 2, 8): 0.05}
    assert paths(drafted) == pytest.approx(expected)
    assert (drafted.score[1:] == ABSENT).all()
    assert drafted.token[0, 0] == 5
    assert drafted.score[0, 0] == 1


def empty(nodes: int) -> Fixed:
    return Fixed("empty", [(3, 0, ABSENT)] * nodes)


@pytest.mark.parametrize("kind", ["ngram", "random", "fixed"])
@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("other", ["none", "absent"])
def test_beside_a_drafter_without_nodes_either_is_what_it_is_alone(kind: str, place: str, other: str) -> None:
    reference = torch.arange(40).expand(SLOTS + 1, 40) % VOCAB
    drafters: dict[str, Drafter] = {
        "ngram": NgramDrafter(SLOTS, VOCAB, torch.device("cpu"), 7),
        "random": RandomTreeDrafter(reference, VOCAB, 7),
        "fixed": Fixed("a", [(1, 0, 0.6), (2, 1, 0.5), (3, 0, 0.2)]),
    }
    nothing: Drafter = NoDrafter() if other == "none" else empty(4)
    drafter, state = drafters[kind], make_state()
    pair = (drafter, nothing) if place == "first" else (nothing, drafter)
    alone, merged = drafter.propose(state, BOUNDS), MergedDrafter(*pair).propose(state, BOUNDS)
    assert (alone.score[0, 1:] > ABSENT).any()
    # a random tree may repeat a path; the rows that a round makes of both are the same all the same
    packed = [pack_tree(c.token, c.parent, c.score, state.active, state.length, 8) for c in (alone, merged)]
    for name in ("token", "position", "depth", "parent", "index"):
        assert torch.equal(getattr(packed[0], name), getattr(packed[1], name)), name


def test_a_merged_tree_keeps_the_protocol() -> None:
    state = make_state()
    reference = torch.arange(40).expand(SLOTS + 1, 40) % VOCAB
    merged = MergedDrafter(RandomTreeDrafter(reference, VOCAB, 31), NgramDrafter(SLOTS, VOCAB, torch.device("cpu"), 31))
    assert merged.max_nodes == 62
    drafted = merged.propose(state, BOUNDS)
    for tensor, dtype in ((drafted.token, torch.int64), (drafted.parent, torch.int64), (drafted.score, torch.float32)):
        assert tensor.shape == (SLOTS + 1, 63)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
    assert (drafted.parent[:, 1:] < torch.arange(1, 63)).all()
    assert (drafted.score <= drafted.score.gather(1, drafted.parent)).all()
    assert ((drafted.token >= 0) & (drafted.token < VOCAB)).all()


@pytest.mark.parametrize(("first", "second", "fits"), [(31, 32, True), (32, 32, False), (63, 0, True), (1, 63, False)])
def test_more_nodes_than_a_round_can_pack_are_refused(first: int, second: int, fits: bool) -> None:
    if fits:
        width = MergedDrafter(empty(first), empty(second)).propose(make_state(), BOUNDS).token.shape[1]
        assert width == first + second + 1 <= 64
    else:
        with pytest.raises(ValueError, match=f"cannot be merged into {first + second} nodes"):
            MergedDrafter(empty(first), empty(second))


def test_only_the_first_has_a_context() -> None:
    context = Context(taps=(1,), layers=2, kv_heads=3, head_dim=4, reach=5)
    first, second = Fixed("a", [(1, 0, 0.5)], context), Fixed("b", [(2, 0, 0.5)])
    merged = MergedDrafter(first, second)
    assert merged.context == context
    merged.absorb(Passed(torch.zeros(3, 1, 8), *[torch.arange(3)] * 4), torch.zeros(2, 2, 3, 3, 4))
    assert (first.absorbed, second.absorbed) == (3, 0)
    assert (merged.name, merged.version) == ("a+b", "a1+b1")
    with pytest.raises(ValueError, match="b and a cannot be merged"):
        MergedDrafter(second, first)
