"""What a request leaves behind in the KV cache, kept for a comparison byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from redraft.kernels.tree_attention import CHUNK
from redraft.server.engine.engine import Engine


@contextmanager
def kept_caches(engine: Engine) -> Iterator[dict[str, Tensor]]:
    """A dict that gets, of every request that leaves ``engine`` meanwhile, the target's keys and values.

    [L, 2, cells, HKV, HD] on the host, by logical cell, whole pages; what lies behind the committed text is anything.
    A request leaves when the host has heard of its end.  Rounds that were launched before do not write to its pages: it
    has been inactive on the device since it ended there.
    """
    kept: dict[str, Tensor] = {}
    state, scheduler = engine.state, engine.scheduler
    leaving: dict[int, str] = {}
    release, vacate = state.release, scheduler.release

    def noted(request_id: str) -> int | None:
        slot = vacate(request_id)
        if slot is not None:
            leaving[slot] = request_id
        return slot

    def copied(slot: int) -> None:
        if slot in leaving:
            pages = [page for page in state.page_table[slot].tolist() if page]
            cell = torch.cat([torch.arange(page * CHUNK, (page + 1) * CHUNK) for page in pages])
            kept[leaving.pop(slot)] = state.kv[:, :, cell.to(state.device)].cpu()
        release(slot)

    with patch.object(state, "release", copied), patch.object(scheduler, "release", noted):
        yield kept


def same_cells(one: Tensor, other: Tensor, count: int) -> bool:
    """Whether the first ``count`` cells have the same bytes."""
    a, b = (cells[:, :, :count].contiguous().view(torch.uint8) for cells in (one, other))
    return a.shape == b.shape and torch.equal(a, b)
