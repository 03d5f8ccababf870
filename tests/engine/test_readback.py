"""What a round committed comes to the host in one copy, and is what it was."""

from __future__ import annotations

import torch

from redraft.server.engine.readback import copied


def test_one_copy_holds_everything() -> None:
    random = torch.Generator().manual_seed(0)
    score = torch.rand(3, 5, generator=random)
    score[1, 2], score[2, 4] = -torch.inf, torch.nan
    whole = torch.randint(-(2**62), 2**62, (3, 4), generator=random)
    given = (whole, whole[:, 1], score, torch.empty(0, 2, dtype=torch.int64), whole.T)
    made = copied(given)
    assert [part.shape for part in made] == [part.shape for part in given]
    for part, wanted in zip(made, given, strict=True):
        torch.testing.assert_close(part, wanted.to(part.dtype), rtol=0, atol=0, equal_nan=True)
    assert len({part.untyped_storage().data_ptr() for part in made}) == 1
