"""Packed blocks: labels and the teacher's rows by a loop over every place, padding, ends of texts, drawn anchors."""

import pytest
import torch

from redraft.drafts.training.blocks import Vocabulary, draw_anchors, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import IGNORE

KEPT = [0, 2, 3, 7, 8, 11, 15, 19, 20, 21, 22, 28, 30, 31, 36]


@pytest.mark.parametrize("kept", [None, KEPT], ids=["whole", "pruned"])
def test_labels_and_teacher_rows_place_by_place(toy, make_config, make_texts, kept) -> None:
    config, teacher = make_config(), toy()
    texts = make_texts((3, 6), (1, 12), (8, 2))
    anchors = [[2, 5, 7], [0, 3, 4, 8, 11], [7, 8]]  # with the first, the last and those whose block passes the end
    states = [teacher.states(text.tokens, config.taps) for text in texts]
    vocabulary = Vocabulary(teacher, kept)
    batch = make_batch(config, teacher, vocabulary, texts, states, anchors)
    known = kept if kept is not None else list(range(teacher.head.shape[0]))
    assert batch.taps.shape == (3, 13, 32)
    assert batch.label.shape == (3, 5, 3)
    labels = 0
    for b, (text, drawn) in enumerate(zip(texts, anchors, strict=True)):
        assert torch.equal(batch.taps[b, : len(text.tokens)], states[b].taps)
        for a in range(5):
            if a >= len(drawn):
                assert batch.anchor[b, a] == 0
                assert (batch.label[b, a] == IGNORE).all()
                continue
            assert batch.anchor[b, a] == drawn[a]
            assert torch.equal(batch.block[b, a, 0], teacher.embedding[text.tokens[drawn[a]]])
            for k in range(1, 4):
                assert torch.equal(batch.block[b, a, k], teacher.embedding[config.mask_token_id])
                place, label = drawn[a] + k, int(batch.label[b, a, k - 1])
                if place >= len(text.tokens) or text.tokens[place] not in known:
                    assert label == IGNORE
                    continue
                labels += 1
                assert known[label] == text.tokens[place]
                assert torch.equal(vocabulary.head[label], teacher.head[text.tokens[place]])
                assert torch.equal(batch.final[batch.teacher_row[b, a, k - 1]], states[b].final[place - 1])
    assert labels == int(batch.labels) > 0
    assert batch.teacher_row.min() >= 0
    assert batch.teacher_row.max() < len(batch.final)


def test_anchors_are_the_positions_with_an_answer_after_them() -> None:
    assert list(Text((1, 2, 3, 4, 5), 2).anchors) == [1, 2, 3]
    assert list(Text((1, 2, 3), 1).anchors) == [0, 1]


def test_drawn_anchors_are_distinct_sorted_and_of_the_seed() -> None:
    text = Text(tuple(range(40)), 10)
    drawn = [draw_anchors(text, 7, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for anchors in drawn:
        assert anchors == sorted(set(anchors))
        assert len(anchors) == 7
        assert set(anchors) <= set(text.anchors)
    assert draw_anchors(text, 30, torch.Generator()) == list(range(9, 39))


def test_every_anchor_can_be_drawn() -> None:
    text, generator = Text(tuple(range(9)), 3), torch.Generator().manual_seed(0)
    assert {a for _ in range(60) for a in draw_anchors(text, 2, generator)} == set(text.anchors)
