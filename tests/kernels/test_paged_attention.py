"""The GPU's attention: against its twin in plain torch, each row against itself in any company, what it compiles to.

Under the interpreter products go to the CPU's library, where a row's bits follow its place in the tile.  ``own_sums``
puts sums in their place that have what the tensor cores have: every element is made of its own row and column alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.benchmarks.attention_cases import Case, Texts, chain, comb
from redraft.kernels import paged_attention
from redraft.kernels.attention_items import attention_items, attention_items_twin, lanes_of
from redraft.kernels.attention_partial import tickets
from redraft.kernels.paged_attention import PagedAttention, PagedTwin
from redraft.kernels.tree_attention import CHUNK, TwinAttention

# what sums in another order differ by; in fp16 weights are rounded, and one that lies near a tie may go the other way
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.float16: {"rtol": 0.0, "atol": 2**-11},
}
# against products of unrounded weights and queries: a few roundings to fp16, relative to values of about 3
COARSE = {
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.float16: {"rtol": 0.0, "atol": 3 * 2**-10},
}
EDGES = (0, 126, 127, 128, 129, 130, 254, 255, 256, 257, 258)
pytestmark = pytest.mark.usefixtures("own_sums")


def mixed(texts: Texts) -> Case:
    """Trees of every kind side by side, and padding."""
    return texts.tree(comb(0, 126, 4), chain(1, 254, 5), chain(2, 0, 1), comb(3, 5, 3), padding=3)


def attend(case: Case, bound: int = 0, programs: int = 3, first: int = 0, one: bool = True) -> Tensor:
    """The kernels' result in fp32, in one launch or two, of few programs: the interpreter has one after the other."""
    bound = bound or case.bound
    attention = PagedAttention(case.rows, case.pages, bound, first, programs=programs, one_launch=one)
    out = attention(case.q, case.key, case.value, torch.float32)
    assert not tickets(case.pages.device).any(), "a ticket was left behind"
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [
        (3, 1, 64, torch.float32),
        (8, 2, 128, torch.float16),
        (8, 1, 128, torch.float32),
        (20, 1, 48, torch.float16),
        (2, 1, 16, torch.float32),
    ],
    ids=str,
)
def test_kernel_is_its_twin(
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    kernel_device: torch.device,
    poisoned: Callable[[], AbstractContextManager[Any]],
) -> None:
    case = mixed(Texts(4, heads, kv_heads, dim, dtype)).to(kernel_device)
    with poisoned():
        out, apart = (attend(case, one=one) for one in (True, False))
    assert torch.equal(out, apart)
    twin = PagedTwin(case.rows, case.pages, case.bound)(case.q, case.key, case.value, torch.float32)
    torch.testing.assert_close(out, twin, **CLOSE[dtype])
    assert not out[-3:].any(), "padding"
    clean = case.without_nan()
    plain = TwinAttention(clean.rows, clean.pages, clean.bound)(clean.q, clean.key, clean.value, torch.float32)
    torch.testing.assert_close(twin[:-3], plain[:-3], **COARSE[dtype])


@pytest.mark.parametrize(
    ("group", "dim", "dtype"),
    [(1, 128, torch.float32), (3, 64, torch.bfloat16), (4, 128, torch.float16), (8, 64, torch.bfloat16)],
    ids=str,
)
def test_a_row_has_its_bits_alone_in_prefill_in_chains_and_in_trees(
    group: int, dim: int, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    texts = Texts(1, group, 1, dim, dtype)

    def bits(case: Case, bound: int = 0, one: bool = True) -> dict[tuple[int, int], Tensor]:
        out = attend(case.to(kernel_device), bound, one=one)
        return {at: row for at, row in zip(case.place, out.cpu(), strict=True) if at is not None}

    alone = {position: bits(texts.tree(chain(0, position, 1)), one=False)[0, position] for position in EDGES}
    passes = (
        bits(texts.prefill((0, 0, 1)), bound=200),
        bits(texts.prefill((0, 121, 11), padding=2), bound=400),
        bits(texts.prefill((0, 254, 5)), one=False),
        bits(texts.tree(chain(0, 123, 8))),
        bits(texts.tree(chain(0, 251, 8), padding=1), bound=512),
        bits(texts.tree(comb(0, 125, 6)), one=False),
        bits(texts.tree(comb(0, 253, 6))),
    )
    met = set()
    for found in passes:
        for (_, position), row in found.items():
            if position in alone:
                met.add(position)
                assert torch.equal(row, alone[position]), f"position {position}"
    assert met == set(EDGES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_broken_token_does_not_reach_the_rows_before_it(dtype: torch.dtype, kernel_device: torch.device) -> None:
    texts = Texts(1, 2, 1, 64, dtype)
    case = texts.tree((0, 125, [0, 0, 1, 2, 3], [2, 3, 4]))
    for node, broken in ((2, torch.nan), (3, torch.inf), (4, -torch.inf)):
        cell = texts.cells(0, torch.tensor(125 + node))
        case.key[cell], case.value[cell] = torch.nan, broken
    out, apart = (attend(case.to(kernel_device), one=one) for one in (True, False))
    for row in (0, 1):
        alone = attend(texts.tree(chain(0, 125 + row, 1)).to(kernel_device))
        assert torch.equal(alone[0], out[row])
    assert out[2:].isnan().any()
    torch.testing.assert_close(apart, out, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("neighbours", [2, 64])
def test_neighbours_leave_no_trace(neighbours: int, kernel_device: torch.device) -> None:
    slots = 6
    texts = Texts(slots, 2, 1, 64)
    lengths = [neighbours // slots + (slot < neighbours % slots) for slot in range(slots)]
    together = texts.tree(*(chain(slot, 40 * slot, n) for slot, n in enumerate(lengths) if n)).to(kernel_device)
    out = attend(together, programs=5)
    assert torch.equal(attend(together, bound=together.bound + 3 * CHUNK, programs=64, one=False), out)
    for row in {0, neighbours // 2, neighbours - 1}:
        at = together.place[row]
        assert at is not None
        single = texts.tree(chain(*at, 1)).to(kernel_device)
        assert torch.equal(attend(single)[0], out[row])


def test_slabs_and_runs_move_no_bit(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts(3, 2, 1, 64)
    case = texts.tree(comb(0, 120, 5), chain(1, 3, 10), chain(2, 200, 3), padding=4).to(kernel_device)
    out = attend(case, one=False)
    monkeypatch.setattr(paged_attention, "WORKSPACE_BYTES", 0)
    assert torch.equal(attend(case), out), "slabs of one row"
    monkeypatch.setattr(paged_attention, "WORKSPACE_BYTES", 8 * 2 * 2 * 66 * 4)
    assert torch.equal(attend(case), out), "slabs of 8 rows"
    monkeypatch.setattr(paged_attention, "WORKSPACE_BYTES", 2**20)
    monkeypatch.setattr(paged_attention, "FAR", 0)
    assert torch.equal(attend(case), out), "runs of 64 rows"


@pytest.mark.parametrize("first", [1, 3, 130])
def test_positions_before_the_first_are_seen_by_their_own_rows_alone(first: int, kernel_device: torch.device) -> None:
    case = Texts(3, 4, 2, 64).tree(comb(0, 126, 4), chain(1, 0, 5), chain(2, 199, 2)).to(kernel_device)
    out = attend(case, first=first)
    assert torch.equal(attend(case, first=first, one=False), out)
    clean = case.without_nan()
    for twin in (PagedTwin, TwinAttention):
        wanted = twin(clean.rows, clean.pages, clean.bound, first)(clean.q, clean.key, clean.value, torch.float32)
        torch.testing.assert_close(out, wanted, **CLOSE[torch.float32])


def test_rows_of_a_block_see_those_behind_them(kernel_device: torch.device) -> None:
    """As DFlash has it: every row is given the last row's place."""
    case = Texts(2, 4, 2, 64).tree(chain(0, 125, 6), chain(1, 30, 6))
    last = case.rows.position - case.rows.depth + 5
    path = torch.arange(6).expand(12, 6)
    rows = replace(case.rows, position=last, depth=torch.full_like(last, 5), path=path)
    case = replace(case, rows=rows).to(kernel_device)
    clean = case.without_nan()
    wanted = TwinAttention(clean.rows, clean.pages, clean.bound)(clean.q, clean.key, clean.value, torch.float32)
    out = attend(case)
    torch.testing.assert_close(out, wanted, **CLOSE[torch.float32])
    assert torch.equal(attend(case, one=False), out)


@pytest.mark.parametrize(("lanes", "run", "slab"), [(128, 16, 16), (64, 16, 48), (32, 64, 64)])
def test_items_are_the_twins_and_every_chunk_of_a_row_is_in_one(
    lanes: int, run: int, slab: int, kernel_device: torch.device, poisoned: Callable[[], AbstractContextManager[Any]]
) -> None:
    texts = Texts(5, 1, 1, 16)
    case = texts.tree(
        comb(0, 126, 9), chain(1, 3, 20), comb(2, 300, 4), chain(3, 200, 7), chain(4, 0, 1), padding=4
    ).to(kernel_device)
    chunks = -(-case.bound // lanes) + 1
    with poisoned():
        made, twin = (
            make(case.rows, case.pages, chunks, lanes=lanes, run=run, slab=slab)
            for make in (attention_items, attention_items_twin)
        )
    assert torch.equal(made.total, twin.total)
    assert torch.equal(made.row, twin.row)
    covered = []
    for number, count in enumerate(made.total.tolist()):
        items = made.table[:, number, :count]
        assert torch.equal(items, twin.table[:, number, :count])
        for row, end, chunk, page, seen in items.T.tolist():
            assert number * slab <= row < end <= (number + 1) * slab
            assert seen > chunk * lanes
            for one in range(row, end):
                if page < 0 or made.row[1, one] > chunk:
                    covered.append((one, chunk))
                    assert page < 0 or page == case.pages[case.rows.slot[one], chunk * lanes // CHUNK]
    position, slot = case.rows.position.tolist(), case.rows.slot.tolist()
    wanted = [(row, c) for row, at in enumerate(position) if slot[row] < 5 for c in range(at // lanes + 1)]
    assert sorted(covered) == wanted


def test_what_a_kernel_cannot_take_is_refused(kernel_device: torch.device) -> None:
    case = Texts(1, 4, 2, 64).tree(chain(0, 5, 2)).to(kernel_device)
    attention = PagedAttention(case.rows, case.pages, case.bound)
    with pytest.raises(ValueError, match="key must be"):
        attention(case.q, case.key.double(), case.value, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        attention(case.q[:1], case.key, case.value, torch.float32)
    with pytest.raises(ValueError, match="one behind the other"):
        attention(case.q.transpose(1, 2).contiguous().transpose(1, 2), case.key, case.value, torch.float32)
    with pytest.raises(ValueError, match="whole runs"):
        attention_items(case.rows, case.pages, 1, lanes=128, run=16, slab=24)
    with pytest.raises(ValueError, match="no room for heads of 2048"):
        lanes_of(torch.bfloat16, 2048)


@pytest.mark.parametrize("gap", [0, 32])
def test_rows_of_queries_may_have_gaps(gap: int, kernel_device: torch.device) -> None:
    case = Texts(1, 4, 2, 64).tree(chain(0, 5, 3)).to(kernel_device)
    out = attend(case)
    wide = torch.full((3, 4 * 64 + gap), torch.nan, device=kernel_device)
    wide[:, : 4 * 64] = case.q.flatten(1)
    assert torch.equal(attend(replace(case, q=wide[:, : 4 * 64].view(3, 4, 64))), out)
