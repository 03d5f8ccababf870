"""What texts give away by themselves: n-gram lookup at all anchors at once against one look-up at a time, and loops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from redraft.benchmarks.headline.evaluate import TREE, Answers
from redraft.benchmarks.headline.sets import FIGURES, accepted, read_sets, set_rows, write_sets
from redraft.drafts.training.data import Text
from redraft.drafts.training.rounds import walk
from redraft.kernels.ngram import MAX_NODES, ngram_twin

VOCAB = 40000
DRAFTED = 5


def text(seed: int, phrases: int = 5, answer: int = 60) -> Text:
    """Phrases of a few, in any order: something to look up."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(VOCAB, (phrases, 4), generator=generator)
    order = torch.randint(phrases, (20,), generator=generator)
    return Text(tuple(known[order].flatten().tolist()), 80 - answer)


def looked_up(tokens: Sequence[int], nodes: int) -> tuple[list[int], list[int], list[float]]:
    """Token, parent and score of the nodes behind ``tokens``."""
    text, length = torch.tensor(tokens).unsqueeze(0), torch.tensor([len(tokens)])
    newest = torch.zeros(1, VOCAB, dtype=torch.int32)
    made = ngram_twin(text, length, torch.tensor([True]), newest, max_nodes=nodes, context_bound=len(tokens))
    token, parent, score = (part[0].tolist() for part in made)
    return token, parent, score


def down(tokens: Sequence[int], wanted: Sequence[int], nodes: int, first_only: bool) -> int:
    """How many of ``wanted`` a tree holds, or its spine, whose node k is node k - 1's child."""
    token, parent, score = looked_up(tokens, nodes)
    node = 0
    for depth, want in enumerate(wanted):
        children = [n for n in range(1, len(token)) if parent[n] == node and token[n] == want and score[n] > 0]
        if first_only:
            children = [n for n in children if n == node + 1]
        if not children:
            return depth
        node = children[0]
    return len(wanted)


@pytest.mark.parametrize("seed", range(3))
def test_all_anchors_at_once_are_one_look_up_each(seed: int) -> None:
    one = text(seed)
    chain, tree = accepted(one, DRAFTED)
    for place, anchor in enumerate(one.anchors):
        known, behind = one.tokens[: anchor + 1], one.tokens[anchor + 1 :]
        assert tree[place] == down(known, behind, TREE, first_only=False)
        assert chain[place] == down(known, behind[:DRAFTED], MAX_NODES, first_only=True)
    assert max(chain) == DRAFTED < max(tree)


def test_figures_are_of_decodings_rounds_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text(seed) for seed in range(3)]
    loop = Text((7, 8, 9) * 20, 12)
    answers = [Answers("phrases", 0.0, texts), Answers("loop", 0.6, [loop])]
    write_sets(tmp_path, answers[:1], DRAFTED)
    (first,) = read_sets(tmp_path)
    rounds = [sum(len(walk(accepted(one, DRAFTED)[shape])) for one in texts) for shape in (0, 1)]
    assert first["tokens"] == 3 * 60
    assert (first["chain"], first["tree"]) == (first["tokens"] / rounds[0], first["tokens"] / rounds[1])
    assert first["looping"] < 0.1

    write_sets(tmp_path, answers, DRAFTED)
    assert read_sets(tmp_path)[0] == first
    second = read_sets(tmp_path)[1]
    assert second["looping"] > 0.8
    assert second["chain"] > 5
    assert set(FIGURES) < second.keys()
    assert [row[0] for row in set_rows(read_sets(tmp_path))] == ["answers to", "phrases", "loop"]

    monkeypatch.setattr("redraft.benchmarks.headline.sets.accepted", lambda *_: pytest.fail("was there already"))
    write_sets(tmp_path, answers, DRAFTED)
