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
    text = tuple(range(10, 40))
    branches = (Branch(5, (7, 8, 9)), Branch(6, (7,)), Branch(30, (1, 2)), Branch(1, (99, 98, 97, 96)))
    made = teacher.behind(text, branches)
    alone = [teacher.states((*text[: b.at], *b.tokens), (0,)).final[-len(b.tokens) :] for b in branches]
    torch.testing.assert_close(made, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made[0], made[3], rtol=1e-2), "the same token after more of the text is another state"


def test_cost_is_what_torch_counts_of_the_reference_model(teacher: TargetTeacher) -> None:
    """Ours has products of its own that torch's counter does not see."""
    model = AutoModel.from_pretrained(teacher.checkpoint.folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(20).unsqueeze(0))
    assert teacher.flops(20) == counter.get_total_flops()
    assert teacher.flops(20, 3) == teacher.flops(23)
