"""Which row of a round is taught what, re-derived row by row."""

import pytest
import torch

from redraft.drafts.training.opd_settings import ABLATIONS, OpdSettings, ablated
from redraft.drafts.training.rounds import Rounds
from redraft.drafts.training.streams import make_streams
from redraft.drafts.training.teacher import Branch

END = 9
KNOWN = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
ROUNDS = Rounds(
    anchor=torch.tensor([4, 7, 9, 14, 16]),
    drafted=torch.tensor([[1, 2, 3, 4], [5, END, 6, 7], [1, 1, 1, 1], [2, 2, 2, 2], [END, 3, 3, 3]]),
    accepted=torch.tensor([2, 1, 4, 0, 0]),
    wanted=torch.where(KNOWN, 0, -1),
    left=torch.tensor([13, 10, 8, 3, 1]),
)


def literal(settings: OpdSettings) -> tuple[list[list[float]], list[list[float]]]:
    accepted, rejected = [], []
    for number in range(5):
        drafted, r = ROUNDS.drafted[number].tolist(), int(ROUNDS.accepted[number])
        for_text, against = [], []
        for k in range(1, 5):
            inside, known = k <= ROUNDS.left[number], bool(KNOWN[number, k - 1])
            weight, bad = 0.0, 0.0
            if inside and k <= r and known:
                weight = 1.0
            if inside and k == r + 1 and known:
                weight, bad = settings.correction, settings.gamma ** (k - 1)
            if inside and k > r + 1:
                if settings.suffix_teacher == "trajectory" and known:
                    bad = settings.gamma ** (k - 1)
                if settings.suffix_teacher == "draft" and END not in drafted[r : k - 1]:
                    bad = settings.gamma ** (k - 1)
            for_text.append(weight)
            against.append(bad if settings.rejected_weight else 0.0)
        accepted.append(for_text)
        rejected.append(against)
    return accepted, rejected


@pytest.mark.parametrize("teacher", ["draft", "trajectory", "none"])
@pytest.mark.parametrize("correction", [0.0, 0.7])
@pytest.mark.parametrize("rejected_weight", [1.0, 0.0])
def test_every_row_has_its_stream(teacher: str, correction: float, rejected_weight: float) -> None:
    settings = OpdSettings(suffix_teacher=teacher, correction=correction, rejected_weight=rejected_weight)
    made = make_streams(ROUNDS, settings, [END])
    accepted, rejected = literal(settings)
    torch.testing.assert_close(made.accepted, torch.tensor(accepted))
    torch.testing.assert_close(made.rejected, torch.tensor(rejected))
    assert bool(made.branches) == (teacher == "draft" and rejected_weight > 0)


def test_branches_are_the_wrong_tokens_behind_what_was_accepted() -> None:
    made = make_streams(ROUNDS, OpdSettings(suffix_teacher="draft"), [END])
    # round 0: wrong from its third token on, one row behind it; round 1: a drafted end, so nothing behind it; round 2:
    # all right; round 3: two rows behind the first within the text; round 4: the text ends at the wrong token
    assert made.branches == (Branch(7, (3,)), Branch(15, (2, 2)))
    assert int(made.suffix.sum()) == 3


def test_ablations_change_one_thing_each() -> None:
    plain = OpdSettings(correction=0.0)
    changed = {
        name: {key for key, value in ablated(plain, name).asked.items() if value != plain.asked[key]}
        for name in ABLATIONS
    }
    assert changed == {
        "no-decay": {"gamma"},
        "all-forward": {"rejected_kl"},
        "all-reverse": {"accepted_kl"},
        "random-anchors": {"anchors"},
        "naive": {"rejected_weight", "correction"},
    }
