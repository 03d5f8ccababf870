"""Sizes of passes: what is asked for has room, and none is larger than what memory was measured for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine.rows_plan import (
    ALWAYS_RECORDED,
    RECORDED,
    pass_sizes,
    prefill_room,
    recorded_rows,
    round_room,
    row_bucket,
)

SMALL, MEDIUM, LARGE = 135_000_000, 1_200_000_000, 8_000_000_000
"""Weights of targets."""


@given(rows=st.integers(0, 600), prefill=st.integers(1, 2100))
def test_without_recordings_all_padding_follows_the_prefill(rows: int, prefill: int) -> None:
    assert pass_sizes(rows, prefill) == (rows, row_bucket(rows + prefill) - rows)
    assert pass_sizes(rows, 0) == (row_bucket(rows), 0)


@given(
    rows=st.integers(0, 600),
    prefill=st.integers(0, 2100),
    more=st.integers(0, 300),
    weights=st.sampled_from([SMALL, MEDIUM, LARGE]),
)
def test_recorded_passes_with_prefill_come_in_few_sizes(rows: int, prefill: int, more: int, weights: int) -> None:
    most = rows + prefill + more
    recorded = recorded_rows(most, weights)
    verified, padded = pass_sizes(rows, prefill, recorded)
    assert verified >= rows
    assert padded >= prefill
    assert verified + padded <= row_bucket(most)
    if not prefill:
        assert (verified, padded) == pass_sizes(rows, 0), "rounds alone keep their sizes"
    elif (verified, padded) != pass_sizes(rows, prefill):
        assert verified + padded in RECORDED
        assert verified in (0, *RECORDED)
        assert verified + padded <= recorded <= RECORDED[-1]
        assert (verified == 0) == (rows == 0)


@given(
    rows=st.integers(0, 300),
    prefill=st.integers(1, 2100),
    forced=st.integers(0, 500),
    recorded=st.sampled_from([0, 512, 2048]),
)
def test_there_is_room_for_prefill_whatever_grammars_force(rows: int, prefill: int, forced: int, recorded: int) -> None:
    recorded = min(recorded, row_bucket(rows + prefill))
    assert pass_sizes(rows + forced, prefill, recorded)[1] <= prefill_room(rows + prefill)


@given(
    rows=st.integers(1, 3000),
    prefill=st.integers(0, 2100),
    forced=st.integers(0, 500),
    recorded=st.sampled_from([0, 512, 2048]),
    spare=st.integers(0, 130),
)
def test_there_is_room_for_the_masks_of_every_round(
    rows: int, prefill: int, forced: int, recorded: int, spare: int
) -> None:
    """Of trees that fill a pass, of few that leave room in it, and with nodes that are tried in the padding."""
    recorded = min(recorded, row_bucket(rows + prefill))
    verified, padded = pass_sizes(rows, prefill, recorded)
    tried = rows + min(spare, verified + padded - rows - prefill)
    most = max(rows + prefill, tried)
    for bound in (round_room(rows + forced, 0, forced), round_room(rows + forced, prefill_room(most), forced)):
        assert pass_sizes(tried + forced, prefill, recorded)[0] <= bound
    assert round_room(5000, prefill_room(2048), 100) <= row_bucket(2048 + 128 + 100), "not of trees that no pass has"


@pytest.mark.parametrize(
    ("rows", "prefill", "sizes"),
    [
        (0, 5, (0, 16)),
        (0, 16, (0, 16)),
        (0, 513, (0, 640)),
        (3, 5, (16, 16)),
        (17, 100, (32, 160)),
        (30, 483, (30, 610)),
    ],
)
def test_some_sizes(rows: int, prefill: int, sizes: tuple[int, int]) -> None:
    assert pass_sizes(rows, prefill, ALWAYS_RECORDED) == sizes


def test_larger_passes_are_recorded_of_small_targets() -> None:
    assert recorded_rows(2048, SMALL) == 2048
    assert recorded_rows(2048, MEDIUM) == 512
    assert recorded_rows(2048, 600_000_000) == 1024
    assert recorded_rows(2048, LARGE) == ALWAYS_RECORDED
    assert recorded_rows(300, SMALL) == row_bucket(300), "no larger than passes are"
    assert pass_sizes(0, 1000, 2048) == (0, 1024)
    assert pass_sizes(20, 1000, 2048) == (32, 1504)
    assert pass_sizes(20, 2030, 2048) == (20, 2156)


def test_recorded_sizes_are_sizes_of_passes() -> None:
    assert all(row_bucket(size) == size for size in RECORDED)
