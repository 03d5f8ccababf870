"""The target as a teacher: rows behind drafted tokens are what reading those texts would give; its cost."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.training.teacher import Branch
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TargetTeacher:
    folder: Path = make_tiny_target(tmp_path_factory.mktemp("target"))
    return TargetTeacher(folder, read_spec(folder), "tiny", torch.device("cpu"), torch.float32)


def test_branches_see_their_part_of_the_text_and_themselves(teacher: TargetTeacher) -> None:
    texts = [tuple(range(10, 40)), (3, 1, 4, 1, 5), (9, 2, 6, 5, 3, 5, 8)]
    branches = [
        [Branch(5, (7, 8, 9)), Branch(6, (7,)), Branch(30, (1, 2)), Branch(1, (99, 98, 97, 96))],
        [],
        [Branch(2, (11, 12))],
    ]
    for made, text, some in zip(teacher.behind(texts, branches), texts, branches, strict=True):
        alone = [teacher.states((*text[: b.at], *b.tokens), (0,)).final[-len(b.tokens) :] for b in some]
        torch.testing.assert_close(made, torch.cat([*alone, made[:0]]), rtol=1e-4, atol=1e-5)
    made = teacher.behind(texts, branches)[0]
    assert not torch.allclose(made[0], made[3], rtol=1e-2), "the same token after more of the text is another state"


def test_texts_read_together_are_read_as_if_alone(teacher: TargetTeacher) -> None:
    texts = [tuple(range(10, 40)), (3, 1, 4, 1, 5), (9,)]
    for made, text in zip(teacher.states_of(texts, (0, 1)), texts, strict=True):
        alone = teacher.states(text, (0, 1))
        torch.testing.assert_close(made.taps, alone.taps, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.final, alone.final, rtol=1e-4, atol=1e-5)


def test_cost_is_what_torch_counts_of_the_reference_model(teacher: TargetTeacher) -> None:
    """Ours has products of its own that torch's counter does not see."""
    model = AutoModel.from_pretrained(teacher.checkpoint.folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(20).unsqueeze(0))
    assert teacher.flops(20) == counter.get_total_flops()
    assert teacher.flops(20, 3) == teacher.flops(23)
