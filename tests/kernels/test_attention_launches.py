"""Attention in one launch: who adds up a row's chunks, in what order they come, and when it is asked to.

That the bytes are those of two launches is test_paged_attention.py's, for every kind of pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.benchmarks.attention_cases import Case, Texts, chain, comb
from redraft.kernels import paged_attention
from redraft.kernels.attention_items import attention_items
from redraft.kernels.attention_partial import TICKETS, make_partial, tickets
from redraft.kernels.chunk_attention import can_add_up, chunk_attention_kernel
from redraft.kernels.paged_attention import PagedAttention, most_items, one_launch_pays

pytestmark = pytest.mark.usefixtures("own_sums")


def attend(case: Case, one: bool | None, programs: int = 4) -> Tensor:
    """The kernels' result in fp32."""
    attention = PagedAttention(case.rows, case.pages, case.bound, programs=programs, one_launch=one)
    return attention(case.q, case.key, case.value, torch.float32)


@pytest.fixture(scope="module")
def case(kernel_device: torch.device) -> Case:
    """Heads that straddle tiles of 16, rows off the spine, and padding in between what programs deal out."""
    texts = Texts(3, 6, 2, 16)
    return texts.tree(comb(0, 126, 4), chain(1, 300, 3), chain(2, 0, 1), padding=6).to(kernel_device)


@pytest.fixture
def apart(case: Case) -> Tensor:
    """What two launches make of it."""
    return attend(case, one=False)


@pytest.mark.parametrize(("step", "programs"), [(-1, 7), (11, 60)])
def test_bytes_are_the_same_whoever_comes_last(
    step: int,
    programs: int,
    case: Case,
    apart: Tensor,
    kernel_device: torch.device,
    poisoned: Callable[[], AbstractContextManager[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met = list[int]()
    if kernel_device.type == "cpu":
        builder = pytest.importorskip("triton.runtime.interpreter").InterpreterBuilder
        real = builder.set_grid_idx

        def elsewhere(self: Any, x: int, y: int, z: int) -> None:
            # 11 has no divisor in common with any of these grids
            met.append((x + 1) * step % self.grid_dim[0])
            real(self, met[-1], y, z)

        monkeypatch.setattr(builder, "set_grid_idx", elsewhere)
    with poisoned():
        out = attend(case, one=True, programs=programs)
    assert torch.equal(out, apart)
    assert not out[-6:].any()
    assert not tickets(kernel_device).any()
    if kernel_device.type == "cpu":
        assert sorted(met[-programs:]) == list(range(programs)), "every program once"


def test_a_drawn_ticket_tells_how_many_chunks_are_done(case: Case, apart: Tensor, kernel_device: torch.device) -> None:
    """A row of which a chunk is still to come is nobody's to add up."""
    items = attention_items(case.rows, case.pages, 3, lanes=128, run=16, slab=32)
    R, HQ, HD = case.q.shape
    items.row[0, 0] += 1
    out = torch.full_like(case.q, -1.0)
    into = make_partial(R, HQ, 3, HD, kernel_device)
    try:
        chunk_attention_kernel(case.q, case.key, case.value, case.rows, case.pages, items, into, programs=3, out=out)
        left = tickets(kernel_device).nonzero().flatten().tolist()
        assert left == [0, 1], "of the row's KV heads"
    finally:
        tickets(kernel_device).zero_()
    assert (out[0] == -1.0).all()
    assert torch.equal(out[1:], apart[1:])


def test_what_one_launch_cannot_add_up_is_refused(case: Case, kernel_device: torch.device) -> None:
    assert can_add_up(TICKETS // 2, 64, 16, 2, 16)
    assert not can_add_up(TICKETS // 2 + 1, 64, 16, 2, 16)
    assert not can_add_up(1, 128, 16, 2, 16)
    assert not can_add_up(1, 64, 17, 2, 16)
    wide = PagedAttention(case.rows, case.pages, 17 * 128, one_launch=True)
    with pytest.raises(ValueError, match="cannot add up 17 chunks of 17 rows and 2 KV heads"):
        wide(case.q, case.key, case.value, torch.float32)
    items = attention_items(case.rows, case.pages, 3, lanes=128, run=16, slab=32)
    R, HQ, HD = case.q.shape
    into = make_partial(R, HQ, 3, HD, kernel_device)
    for out, message in ((case.q[1:], "out must be"), (case.q.double(), "out must be torch.bf"), (case.q[0], "dimen")):
        with pytest.raises(ValueError, match=message):
            chunk_attention_kernel(case.q, case.key, case.value, case.rows, case.pages, items, into, out=out)


SMOLLM2, QWEN3_8B = (9, 3, 64), (32, 8, 128)


@pytest.mark.parametrize(
    ("heads", "rows", "run", "most"),
    [(SMOLLM2, 1, 16, 64), (SMOLLM2, 16, 16, 9), (SMOLLM2, 16, 8, 18), (QWEN3_8B, 1, 16, 32), (QWEN3_8B, 16, 8, 5)],
    ids=str,
)
def test_one_launch_pays_up_to_a_context(heads: tuple[int, int, int], rows: int, run: int, most: int) -> None:
    """The figures of ``one_launch_pays``, for one request: whoever changes what it rests on argues anew."""
    own = 2 if rows > 1 else 0

    def pays(chunks: int) -> bool:
        return one_launch_pays(most_items(rows, 1, run, chunks, own), min(run, rows), chunks, *heads)

    assert [chunks for chunks in (*range(1, 20), 32, 64) if pays(chunks)][-1] == most


@pytest.mark.parametrize("run", [1, 8, 16])
def test_items_are_no_more_than_are_counted_on(run: int, kernel_device: torch.device) -> None:
    """Trees that begin at the end of a chunk, chains, many requests of a row; runs that end within a request."""
    texts = Texts(6, 2, 2, 16)
    many = [(i, 126 + i, 1) for i in range(6)]
    for case, requests in (
        (texts.tree(comb(0, 126, 9), comb(1, 300, 4)), 2),
        (texts.tree(chain(0, 250, 17), chain(1, 0, 2), padding=3), 2),
        (texts.tree(*(chain(*one) for one in many)), 6),
    ):
        R, W = case.rows.path.shape
        chunks, own = -(-case.bound // 16), 1 + -(-(W - 1) // 16) if W > 1 else 0
        here = case.to(kernel_device)
        items = attention_items(here.rows, here.pages, chunks, lanes=16, run=run, slab=-(-R // run) * run)
        assert int(items.total.sum()) <= most_items(R, requests, run, chunks, own) <= R * chunks


@pytest.mark.parametrize(
    ("heads", "run", "requests", "merges"),
    [((32, 8), 8, 1, True), ((16, 8), 16, 1, True), ((32, 8), 16, None, False)],
    ids=str,
)
def test_verifying_16_rows_of_a_request(
    heads: tuple[int, int], run: int, requests: int | None, merges: bool, kernel_device: torch.device
) -> None:
    """On heads of Qwen3-8B and 1.7B, at 512 positions: one launch, if the pass says that it is one request."""
    case = Texts(1, 2, 2, 16).tree(comb(0, 490, 8), padding=1).to(kernel_device)
    attention = PagedAttention(case.rows, case.pages, 512 + 31, requests=requests)
    attention._plan(torch.bfloat16, *heads, 128)
    assert len(case.rows.token) == 16
    assert (attention.items.run, attention.merges) == (run, merges)


def test_items_of_fewer_rows_where_one_launch_pays_then(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes stay: what is dealt out to whom moves none of them."""
    case = Texts(1, 8, 2, 16).tree(comb(0, 126, 8)).to(kernel_device)
    apart = attend(case, one=False)
    monkeypatch.setattr(paged_attention, "one_launch_pays", lambda items, rows, *rest: rows <= 8)
    attention = PagedAttention(case.rows, case.pages, case.bound, requests=1, programs=4)
    assert torch.equal(attention(case.q, case.key, case.value, torch.float32), apart)
    assert (attention.merges, attention.items.run) == (True, 8)


def test_a_pass_has_the_launches_that_pay(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = list[str]()
    for name in ("chunk_attention_kernel", "sum_chunks_kernel"):
        monkeypatch.setattr(f"redraft.kernels.paged_attention.{name}", lambda *a, name=name, **k: launches.append(name))
    attend(case, one=None)
    assert launches == ["chunk_attention_kernel"]
    attend(case, one=False)
    assert launches[1:] == ["chunk_attention_kernel", "sum_chunks_kernel"]
    # its 16 MB of partial results would be one program's
    far = PagedAttention(case.rows, case.pages, 128 * 4096)
    far(case.q, case.key, case.value, torch.float32)
    assert launches[3:] == ["chunk_attention_kernel", "sum_chunks_kernel"]
