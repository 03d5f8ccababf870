"""Every drafter keeps the protocol: shapes, order of nodes, scores, inactive slots; and drafts what it says."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.drafts.adversarial import ChainDrafter, RandomTreeDrafter, TwinSiblingDrafter
from redraft.drafts.base import Bounds, Candidates, Drafter, DraftState
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.sample import SamplingTable

VOCAB = 11
TEXTS = [[1, 2, 3, 4, 1, 2, 3, 4, 1, 2], [7], [5, 6, 5, 6], []]
"""Slot 2 is not active; slot 3 is the trash slot."""

BOUNDS = Bounds(context=20, requests=2)


def reference() -> torch.Tensor:
    """[4, 40] the whole texts, of which the state shows the first tokens."""
    whole = torch.arange(40).expand(4, 40) * 3 % VOCAB
    for slot, text in enumerate(TEXTS):
        whole = whole.clone()
        whole[slot, : len(text)] = torch.tensor(text, dtype=torch.int64)
    return whole


def make_state() -> DraftState:
    length = torch.tensor([len(text) for text in TEXTS])
    return DraftState(
        tokens=reference()[:, :20].contiguous(),
        length=length,
        active=torch.arange(4) < 2,
        page_table=torch.zeros(4, 1, dtype=torch.int64),
        kv=torch.zeros(0, 2, 128, 1, 1),
        sampling=SamplingTable.greedy(3, "cpu"),
    )


def make(kind: str, max_nodes: int) -> Drafter:
    match kind:
        case "none":
            return NoDrafter()
        case "ngram":
            return NgramDrafter(3, VOCAB, torch.device("cpu"), max_nodes)
        case "right":
            return ChainDrafter(reference(), VOCAB, max_nodes)
        case "wrong":
            return ChainDrafter(reference(), VOCAB, max_nodes, offset=4)
        case "twins":
            return TwinSiblingDrafter(reference(), max_nodes)
        case _:
            return RandomTreeDrafter(reference(), VOCAB, max_nodes, seed=3)


KINDS = ["none", "ngram", "right", "wrong", "twins", "random"]


@pytest.mark.parametrize("max_nodes", [1, 6, 63])
@pytest.mark.parametrize("kind", KINDS)
def test_protocol(kind: str, max_nodes: int) -> None:
    drafter, state = make(kind, max_nodes), make_state()
    before = [tensor.clone() for tensor in (state.tokens, state.length, state.active)]
    drafted = drafter.propose(state, BOUNDS)
    width = drafter.max_nodes + 1
    for tensor, dtype in ((drafted.token, torch.int64), (drafted.parent, torch.int64), (drafted.score, torch.float32)):
        assert tensor.shape == (4, width)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
    assert drafted.token[:2, 0].tolist() == [2, 7]
    assert (drafted.parent[:, 0] == 0).all()
    assert (drafted.parent[:, 1:] < torch.arange(1, width)).all()
    assert (drafted.parent >= 0).all()
    assert ((drafted.token >= 0) & (drafted.token < VOCAB)).all()
    assert (drafted.score[:2, 0] == 1).all()
    assert (drafted.score[2:] == -torch.inf).all()
    assert (drafted.score <= drafted.score.gather(1, drafted.parent)).all()
    for tensor, copy in zip((state.tokens, state.length, state.active), before, strict=True):
        assert torch.equal(tensor, copy)
    assert drafter.name
    assert drafter.version


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_fixed(kind: str) -> None:
    with FakeTensorMode():
        drafted = make(kind, 5).propose(make_state(), BOUNDS)
    assert drafted.token.shape == drafted.parent.shape == drafted.score.shape


def walk(drafted: Candidates, slot: int, text: list[int]) -> int:
    """Drafted tokens accepted when ``text`` is what follows: down to the lowest-numbered child with the right token."""
    node = 0
    for accepted, token in enumerate(text):
        children = [
            i
            for i in range(1, drafted.token.shape[1])
            if drafted.parent[slot, i] == node
            and drafted.token[slot, i] == token
            and drafted.score[slot, i] > -torch.inf
        ]
        if not children:
            return accepted
        node = children[0]
    return len(text)


@pytest.mark.parametrize(("kind", "accepted"), [("right", 6), ("wrong", 0), ("none", 0), ("twins", 2)])
def test_acceptance(kind: str, accepted: int) -> None:
    drafted = make(kind, 6).propose(make_state(), BOUNDS)
    for slot in range(2):
        start = len(TEXTS[slot])
        assert walk(drafted, slot, reference()[slot, start : start + 8].tolist()) == accepted


def test_twins_come_in_pairs() -> None:
    drafted = make("twins", 6).propose(make_state(), BOUNDS)
    assert drafted.parent[0].tolist() == [0, 0, 0, 1, 1, 4, 4]
    assert torch.equal(drafted.token[:, 1::2], drafted.token[:, 2::2])


def test_random_trees_vary_and_repeat() -> None:
    state = make_state()
    drafted = make("random", 40).propose(state, BOUNDS)
    again = make("random", 40).propose(state, BOUNDS)
    other = RandomTreeDrafter(reference(), VOCAB, 40, seed=4).propose(state, BOUNDS)
    assert torch.equal(drafted.token, again.token)
    assert torch.equal(drafted.parent, again.parent)
    assert not torch.equal(drafted.parent, other.parent)
    assert not torch.equal(drafted.parent[0], drafted.parent[1])
    # several nodes have more than one child, and some branch is deep
    assert (drafted.parent[0].bincount() > 1).sum() > 5
    assert walk(drafted, 0, reference()[0, 10:18].tolist()) >= 1


def test_ngram_follows_the_loop() -> None:
    drafted = make("ngram", 6).propose(make_state(), BOUNDS)
    assert drafted.token[0].tolist() == [2, 3, 4, 1, 2, 3, 4]
    assert drafted.parent[0].tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert (drafted.score[1, 1:] == -torch.inf).all(), "one token has no earlier place to look at"


def test_ngram_refuses_too_many_nodes() -> None:
    with pytest.raises(ValueError, match="drafts 1 to 63 nodes, not 64"):
        NgramDrafter(1, VOCAB, torch.device("cpu"), 64)
