"""The checks of the GPU's attention, in Triton's interpreter: they pass where they should, and can fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.benchmarks import attention_checks as checks
from redraft.benchmarks.attention_checks import Shape, attention_checks
from redraft.benchmarks.attention_speed import Load, measure, speed_rows
from redraft.kernels.paged_attention import PagedAttention
from redraft.kernels.triton_support import HAS_TRITON

pytestmark = [
    pytest.mark.usefixtures("own_sums"),
    pytest.mark.skipif(not HAS_TRITON, reason="needs Triton"),
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_all_pass() -> None:
    found = {name: check() for name, check in attention_checks(DEVICE, (torch.float32,), quick=True)}
    assert len(found) == 6
    assert set(found.values()) == {None}


class Meddled(PagedAttention):
    """Wrong by a last bit as soon as there are more rows than one; NaN in the first."""

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        out = super().__call__(q, key, value, dtype)
        if len(out) > 1:
            out = torch.nextafter(out, torch.full_like(out, torch.inf))
            out[0] = torch.nan
        return out


class Padded(PagedAttention):
    """A result that follows the bound of the context."""

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        return super().__call__(q, key, value, dtype) + self.bound


class Hasty(PagedAttention):
    """Adds up, from the second time on, what lies there before anything was written."""

    before: Tensor | None = None

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        early = None if self.before is None else self.partial.total[..., 0, :] * 0
        self.before = super().__call__(q, key, value, dtype)
        return self.before if early is None or not self.merges else self.before + early


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [check for _, check in attention_checks(DEVICE, (torch.float32,), True)]
    _, twins, companies, neighbours, dealt, launches = found
    monkeypatch.setattr(checks, "PagedAttention", Hasty)
    assert launches() == "other bits in one launch of 3 programs"
    monkeypatch.setattr(checks, "PagedAttention", Meddled)
    assert "padding are not zero" in str(twins())
    assert "other bits than alone at positions [126, 127, 128, 129, 130]" in str(companies())
    assert "(3, 0)" in str(neighbours())
    monkeypatch.setattr(checks, "PagedAttention", Padded)
    assert "context is padded" in str(dealt())


def test_speed_is_a_share_of_the_bytes_that_have_to_be_read() -> None:
    figure = measure(DEVICE, torch.float16, Shape(2, 1, 16), Load(2, 3, 140), 1e9)
    assert figure["bytes"] == 2 * 140 * 2 * 16 * 2 * 1
    assert figure["floor_microseconds"] == pytest.approx(figure["bytes"] / 1e3)
    # 6 rows of 2 heads and 2 chunks: 18 numbers each, written and read; one launch
    partial = 2 * 6 * 2 * 2 * 18 * 4
    assert figure["predicted_microseconds"] == pytest.approx((figure["bytes"] + partial) / 1e3 + 2.5)
    assert figure["launches"] == 1
    assert figure["microseconds_by_launches"].keys() == {"1", "2"}
    assert figure["microseconds"] == figure["microseconds_by_launches"]["1"]
    assert figure["share"] == pytest.approx(figure["floor_microseconds"] / figure["microseconds"])


def test_rows_of_a_load_are_chains_at_the_end_of_the_context() -> None:
    rows, pages = speed_rows(Load(2, 3, 140), torch.device("cpu"))
    assert rows.position.tolist() == [137, 138, 139] * 2
    assert rows.path.tolist() == [[0, -1, -1], [0, 1, -1], [0, 1, 2]] * 2
    assert sorted(pages.flatten().tolist()) == [0, 0, 1, 2, 3, 4]
