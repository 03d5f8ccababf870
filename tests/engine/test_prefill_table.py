"""What a pass prefills, as the host writes it and a pass reads it."""

from __future__ import annotations

import pytest
import torch

from redraft.server.engine.prefill_table import Chunk, PrefillTable

CPU = torch.device("cpu")


def read(table: PrefillTable, padded: int) -> list[list[int]]:
    return [part.tolist() for part in table.read(padded)]


def test_rows_of_chunks_and_padding() -> None:
    table = PrefillTable(3, 8, CPU)
    table.write([Chunk(2, 5, 3), Chunk(0, 0, 2)], 6)
    assert read(table, 6) == [[2, 2, 2, 0, 0, 3], [5, 6, 7, 0, 1, 0], [3, 0, 0, 0], [2, 0, 3, 0]]


def test_nothing_is_left_of_what_was_written_before() -> None:
    table = PrefillTable(3, 8, CPU)
    table.write([Chunk(1, 90, 8)], 8)
    table.write([Chunk(0, 1, 1)], 4)
    assert read(table, 4) == [[0, 3, 3, 3], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    table.write([], 8)
    assert read(table, 8) == [[3] * 8, [0] * 8, [0] * 4, [0] * 4]


def test_where_a_pass_reads_stays_the_same() -> None:
    """A recorded one reads there again."""
    table = PrefillTable(3, 8, CPU)
    views = table.read(6)
    table.write([Chunk(2, 5, 3), Chunk(0, 0, 2)], 6)
    assert [part.tolist() for part in views] == read(table, 6)


@pytest.mark.parametrize(("count", "padded"), [(5, 4), (9, 9), (2, 9)])
def test_more_rows_than_there_is_room_for_are_refused(count: int, padded: int) -> None:
    with pytest.raises(ValueError, match=f"{count} rows of prefill, padded to {padded}, in a table of 8"):
        PrefillTable(3, 8, CPU).write([Chunk(1, 0, count)], padded)
