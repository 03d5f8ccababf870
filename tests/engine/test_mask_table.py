"""The table of what grammars allow: what was written is read, and nothing is overwritten on its way to a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.server.engine.mask_table import MaskTable

CPU = torch.device("cpu")


def write(table: MaskTable, rows: int, start: int) -> tuple[Tensor, Tensor]:
    """Count up from ``start`` in both tensors; returns where that was written."""
    there: list[Tensor] = []

    def count(allowed: Tensor, left_out: Tensor) -> None:
        assert bool((allowed == -1).all())
        assert not left_out.any()
        there.extend((allowed, left_out))
        allowed.copy_(torch.arange(start, start + allowed.numel()).view_as(allowed))
        left_out[-1] = 1

    table.write(rows, count)
    return there[0], there[1]


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_what_was_written_is_read(rows: int) -> None:
    table = MaskTable(8, 70, CPU)
    at = table.reserve().data_ptr()
    for start in (100, 7):
        write(table, rows, start)
        allowed, left_out = table.read(rows)
        assert allowed.tolist() == torch.arange(start, start + 3 * rows).view(rows, 3).tolist()
        assert left_out.tolist() == [0] * (rows - 1) + [1]
        assert (allowed.dtype, allowed.is_contiguous()) == (torch.int32, True)
    assert table.reserve().data_ptr() == at, "a graph reads it where it was"


def test_more_rows_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows in a table of masks for 8"):
        write(MaskTable(8, 70, CPU), 9, 0)


def test_on_a_gpu_each_write_has_pinned_memory_of_its_own_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for its memory: copies are made at the end, as they may be when the host is ahead."""
    table, copies, pinned = MaskTable(8, 70, CPU), list[tuple[Tensor, Tensor]](), list[bool]()
    memory, empty = table.reserve(), torch.empty

    class OnGpu:
        """The table's memory, of which parts are taken and copied to."""

        def __init__(self, part: Tensor) -> None:
            self.part = part

            self.shape = part.shape

        def __getitem__(self, where: slice) -> OnGpu:
            return OnGpu(self.part[where])

        def copy_(self, here: Tensor, *, non_blocking: bool) -> None:
            assert non_blocking
            copies.append((self.part, here))

    def on_host(shape: torch.Size, *, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        pinned.append(pin_memory)
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", on_host)
    table.device, table.values = torch.device("cuda"), OnGpu(memory)  # type: ignore[assignment]
    written = [write(table, rows, start) for rows, start in ((4, 100), (8, 0))]
    assert not memory.any(), "written elsewhere"
    assert pinned == [True, True]
    assert written[0][0][0].tolist() == [100, 101, 102], "what is still on its way stays"
    table.values = memory
    for rows, (there, here) in zip((4, 8), copies, strict=True):
        there.copy_(here)
        assert table.read(rows)[0][0].tolist() == ([100, 101, 102] if rows == 4 else [0, 1, 2])
