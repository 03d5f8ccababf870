"""The trees that requests may see are those that were verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher

from redraft.benchmarks.tiny import make_tiny_target
from redraft.kernels.accept import accept_twin
from redraft.kernels.pack_tree import pack_tree_twin
from redraft.server.engine.acceptance import Proposal
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import Request, RoundOutput, SamplingParams, TreeNode
from redraft.server.engine.verified import verified_nodes

NONE = float("-inf")
#       root  a   b   aa  ab  aaa
TREE = {"token": (9, 10, 11, 12, 13, 14), "parent": (0, 0, 0, 1, 1, 3), "score": (1.0, 0.8, 0.1, 0.5, 0.2, 0.4)}


def test_nodes_are_the_best_ones_and_renumbered() -> None:
    seen = verified_nodes(Proposal(**TREE, committed=(10, 13, 99), verified=4), 2)  # type: ignore[arg-type]
    assert seen == (
        TreeNode(10, -1, 0.8, True),
        TreeNode(12, 0, 0.5, False),
        TreeNode(13, 0, 0.2, True),
        TreeNode(14, 1, 0.4, False),
    )
    assert verified_nodes(Proposal(**TREE, committed=(77,), verified=0), 0) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_they_are_the_rows_of_the_round(seed: int) -> None:
    """Whatever scores a draft makes up: absent nodes, ties, children above their parents, siblings of one token."""
    generator = torch.Generator().manual_seed(seed)
    slots, width, rows = 3, 9, 17

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    token = draw(3, slots + 1, width)
    parent = torch.stack([draw(max(node, 1), slots + 1) for node in range(width)], 1)
    choices = torch.tensor([NONE, float("nan"), -0.5, 0.0, 0.25, 0.5, 0.5, 1.0, 2.0])
    score = choices[draw(len(choices), slots + 1, width)]
    active = torch.tensor([True, True, seed % 2 == 0, False])
    length = torch.full((slots + 1,), 5)
    packed = pack_tree_twin(token, parent, score, active, length, rows)
    limit = torch.full((slots + 1,), 5 + 1 + seed % 4)
    ends = torch.tensor([[seed % 5]]).expand(slots + 1, 1)
    text = torch.zeros(slots + 1, 40, dtype=torch.int64)
    committed = accept_twin(packed, draw(3, rows), text, length, limit, active.clone(), ends)
    some = 0
    for slot in range(slots):
        count, accepted = int(committed.count[slot]), int(committed.accepted[slot])
        proposal = Proposal(
            token[slot].tolist(),
            parent[slot].tolist(),
            score[slot].tolist(),
            committed.tokens[slot, :count].tolist(),
            int(committed.drafted[slot]),
        )
        first = int(packed.first_row[slot])
        mine = range(first + 1, first + int(packed.row_count[slot]))
        path = set(committed.path_row[slot, 1 : accepted + 1].tolist())
        expected = [(int(packed.token[row]), int(packed.parent[row]) - first - 1, row in path) for row in mine]
        seen = verified_nodes(proposal, accepted)
        assert [(node.token, node.parent, node.accepted) for node in seen] == expected
        assert all(0 <= node.score <= 1 for node in seen)
        some += len(seen)
    assert some > 0


def test_only_requests_that_ask_get_them(tiny_target: Callable[[str], Path]) -> None:
    config = EngineConfig(
        target=str(tiny_target("llama")), target_name="tiny", target_sha="0", draft="ngram", dtype="fp32", device="cpu",
        max_num_seqs=2, self_check=False, measure_costs=False, speculation="6",
    )  # fmt: skip
    engine = build_engine(config)
    prompt = (5, 9, 7, 5, 9, 7, 5, 9, 7, 5, 9)
    for name, asks in (("asks", True), ("does not", False)):
        engine.submit(Request(name, prompt, SamplingParams(max_tokens=40, temperature=0), show_tree=asks))
    outputs: dict[str, list[RoundOutput]] = {"asks": [], "does not": []}
    while engine.busy:
        for output in engine.step().outputs:
            outputs[output.request_id].append(output)
    assert all(output.tree == () for output in outputs["does not"])
    assert sum(output.drafted for output in outputs["does not"]) > 0
    for output in outputs["asks"]:
        assert len(output.tree) == output.drafted
        path = [node for node in output.tree if node.accepted]
        assert tuple(node.token for node in path) == output.tokens[: output.accepted]
        assert [node.parent for node in path] == [-1, *(output.tree.index(node) for node in path)][: len(path)]
    assert sum(output.accepted for output in outputs["asks"]) > 0
    assert any(not node.accepted for output in outputs["asks"] for node in output.tree)
    assert [o.tokens for o in outputs["asks"]] == [o.tokens for o in outputs["does not"]]


@pytest.mark.usefixtures("unhurried")
def test_what_a_grammar_drafts_is_seen_with_and_without_a_draft_beside_it(tmp_path: Path) -> None:
    folder = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    config = EngineConfig(
        str(folder), "tiny", "", "ngram", device="cpu", dtype="fp32", self_check=False, measure_costs=False
    )
    engine = build_engine(config)
    step = engine.pacer.step
    grammar = LLMatcher.grammar_from_regex("(the same words|the other words) again and again")
    request = Request("a", (5, 6, 7), SamplingParams(60, temperature=0.0), grammar=grammar, show_tree=True)
    rounds = []
    for drafting in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not drafting:
                patch.setattr(engine.pacer, "step", lambda *args: replace(step(*args), drafting=False, nodes=0))
            engine.submit(request)
            outputs: list[RoundOutput] = []
            while engine.busy:
                outputs += engine.step().outputs
        assert all(len(output.tree) == output.drafted for output in outputs)
        assert sum(output.accepted for output in outputs) == sum(n.accepted for o in outputs for n in o.tree) > 5
        rounds.append([token for output in outputs for token in output.tokens])
    assert rounds[0] == rounds[1]


def test_an_accepted_node_without_a_row_here_ends_the_path() -> None:
    """Scores rounded to ties on the device may have picked another node than these would."""
    proposal = Proposal(token=[9, 1, 2], parent=[0, 0, 0], score=[1.0, 0.5, 0.49], committed=[2, 5], verified=1)
    (node,) = verified_nodes(proposal, 1)
    assert (node.token, node.accepted) == (1, False)
