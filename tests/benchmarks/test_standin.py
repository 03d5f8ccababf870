"""Trees that are made up, and what rounds make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from redraft.benchmarks.launches import count_op, launches_of
from redraft.benchmarks.predict import PRODUCTS_AND_ATTENTION
from redraft.benchmarks.round_speed import Rounds
from redraft.benchmarks.shape_draft import products_and_attention, random_draft
from redraft.benchmarks.shape_target import BOUND, LENGTH, Case, ShapeTarget, begin
from redraft.benchmarks.shapes import TARGETS, TINY, draft_shape
from redraft.benchmarks.standin import Given, MadeTrees, simulated
from redraft.drafts.base import Bounds
from redraft.kernels.attention import block_attention, cpu_attention

CPU = torch.device("cpu")
SPEC = TINY["tiny"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """As rounds run."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def shape() -> ShapeTarget:
    return ShapeTarget(SPEC, CPU, torch.float32, cpu_attention)


def test_a_made_tree_is_a_tree() -> None:
    made = MadeTrees(slots=2, nodes=30, kept=15, anchor=7, device=CPU)
    tree = made.tree
    assert tree.token.shape == (3, 31)
    assert made.spine == 10
    number = torch.arange(31)
    assert (tree.parent[:, 1:] < number[1:]).all()
    assert (tree.score[:-1] <= tree.score[:-1].gather(1, tree.parent[:-1])).all()
    assert (tree.score[-1] == -torch.inf).all(), "the trash slot has none"
    assert (tree.score[0, 1:16] > tree.score[0, 16:].max()).all(), "the best come first"
    # depth by depth along the spine
    assert sum(made.on_spine) == 10
    assert made.depth[torch.tensor(made.on_spine)].tolist() == list(range(1, 11))


def test_a_path_is_no_deeper_than_a_draft_goes() -> None:
    made = MadeTrees(slots=1, nodes=63, kept=63, anchor=7, device=CPU, deepest=15)
    assert made.spine == int(made.depth.max()) == 15
    # 48 siblings, three or four of each node
    assert [int((made.depth == depth).sum()) for depth in range(1, 16)] == [5] * 3 + [4] * 12
    last = [max(n for n in range(64) if made.depth[n] == depth) for depth in range(1, 16)]
    assert all(made.on_spine[n] for n in last), "siblings stand before the spine's node"


def test_as_many_nodes_are_right_as_are_said_to_be() -> None:
    made = MadeTrees(slots=2, nodes=9, kept=6, anchor=7, device=CPU)
    texts = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8]])
    made.write(texts, torch.tensor([0, 3]), vocab=10)
    token, parent = made.tree.token, made.tree.parent
    assert (token[:, 0] == 7).all()
    for slot, right in ((0, 0), (1, 3)):
        node, walked = 0, 0
        for true in texts[slot].tolist():
            below = [n for n in range(1, 10) if parent[slot, n] == node and token[slot, n] == true]
            if not below:
                break
            assert len(below) == 1
            node, walked = below[0], walked + 1
        assert walked == right
    siblings = [token[0, n].item() for n in range(1, 10) if parent[0, n] == 0]
    assert len(set(siblings)) == len(siblings)


def test_simulated_acceptance_follows_its_rate() -> None:
    found = simulated(0.8, spine=10, steps=4000, slots=2)
    assert found.shape == (4000, 2)
    assert ((found >= 0) & (found <= 10)).all()
    for depth in (1, 2, 5):
        assert (found >= depth).float().mean().item() == pytest.approx(0.8**depth, abs=0.03)
    assert torch.equal(found, simulated(0.8, spine=10, steps=4000, slots=2))


@pytest.mark.parametrize("case", [Case(1, 16), Case(3, 8), Case(1, 64)])
def test_rounds_commit_what_is_simulated(shape: ShapeTarget, case: Case) -> None:
    """The very nodes that are said to be right, moved from where a sibling stood before them."""
    rounds = Rounds(shape, draft_shape(SPEC), case, rate=0.7)
    # as without any draft
    assert rounds.texts.shape == (case.requests, rounds.trees.spine)
    right = simulated(0.7, rounds.trees.spine, 6, case.requests)
    run = shape.rounds(rounds.state, Given(rounds.trees.tree, rounds.drafter))
    moved = False
    for step in right:
        begin(rounds.state)
        rounds.trees.write(rounds.texts, step, SPEC.vocab)
        committed = run(case.plan)[0].committed
        assert committed.accepted[:-1].tolist() == step.tolist()
        assert (committed.drafted[:-1] == case.rows - 1).all()
        for slot, count in enumerate(step.tolist()):
            assert committed.tokens[slot, :count].tolist() == rounds.texts[slot, :count].tolist()
        path = committed.path_row[0]
        moved = moved or bool((path[path >= 0] != torch.arange(int((path >= 0).sum()))).any())
    assert moved, "nothing had to be moved: these trees are no test"
    measured = rounds.measure(steps=len(right))
    assert measured["tokens_per_round"] == pytest.approx(1 + right.float().mean().item())
    assert measured["tokens_per_second"] > 0
    assert measured["products_and_attention_seconds"] > 0
    assert measured["rest_share"] < 1
    assert rounds.draft_seconds() > 0


def test_products_and_attention_are_those_of_the_round(shape: ShapeTarget) -> None:
    """The target's logits come out as in the round, and the state stays as it is."""
    case = Case(2, 8)
    rounds = Rounds(shape, draft_shape(SPEC), case)
    state = rounds.state
    rounds.trees.write(rounds.texts, torch.tensor([2, 3]), SPEC.vocab)
    begin(state)
    seen = []
    logits_of = shape.target.logits

    def noted(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(logits_of(hidden))
        return seen[-1]

    shape.target.logits = noted  # type: ignore[method-assign]
    try:
        parts = products_and_attention(shape, rounds.draft, state, rounds.trees.tree, case)
        before = state.length.clone(), state.active.clone(), state.tokens.clone()
        drafted, context, logits = parts()  # type: ignore[misc]
        assert all(torch.equal(a, b) for a, b in zip(before, (state.length, state.active, state.tokens), strict=True))
        shape.rounds(state, Given(rounds.trees.tree, rounds.drafter))(case.plan)
    finally:
        del shape.target.logits  # type: ignore[method-assign]
    assert torch.equal(logits, seen[0])
    assert torch.equal(seen[0], seen[1])
    config = rounds.draft.config
    assert drafted.shape == (2 * config.block_size, config.tokens)
    assert context.shape == (16, 2 * config.layers * config.kv_width)


@pytest.mark.parametrize(
    ("name", "case"), [("SmolLM2-135M", Case(1, 16)), ("Qwen3-8B", Case(1, 16)), ("Qwen3-8B", Case(16, 8))]
)
def test_products_and_attention_are_all_of_a_rounds_on_a_gpu(name: str, case: Case) -> None:
    """By their launches: what is timed apart is what is predicted apart, and the rest is everything else of a round."""
    pytest.importorskip("triton")
    spec = replace(TARGETS[name], layers=12)
    config, nodes = draft_shape(spec), case.rows - 1

    def make() -> Callable[[], object]:
        shape = ShapeTarget(spec, CPU, torch.bfloat16, block_attention)
        shape.kv_dtype = torch.bfloat16
        draft, drafter = random_draft(shape, config, case)
        state = shape.state(case, drafter.max_nodes, drafter.context)
        trees = MadeTrees(case.requests, drafter.max_nodes, nodes, 1, CPU, config.drafted)
        return products_and_attention(shape, draft, state, trees.tree, case)

    found = launches_of(spec, config, case.requests, case.rows, nodes, True, BOUND)
    assert found is not None
    assert count_op(make) == sum(found.get(module, 0) for module in PRODUCTS_AND_ATTENTION)


def test_a_given_tree_does_a_drafts_work(shape: ShapeTarget) -> None:
    rounds = Rounds(shape, draft_shape(SPEC), Case(1, 8))
    calls = []

    class Noting:
        name, version, max_nodes, context = "noting", "1", 14, rounds.drafter.context

        def propose(self, state: object, bounds: Bounds) -> None:
            calls.append("propose")

        def absorb(self, passed: object, kv: object) -> None:
            calls.append("absorb")

    given = Given(rounds.trees.tree, Noting())  # type: ignore[arg-type]
    assert given.context == rounds.drafter.context
    shape.rounds(rounds.state, given)(Case(1, 8).plan)
    assert calls == ["propose", "absorb"]
    assert int(rounds.state.length[0]) >= LENGTH
