"""Random texts with queries, keys and values, and passes over them as rows: what attention is checked on.

A token has the same query, key and value in whatever pass and cell it is computed, so its row must come out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import CHUNK

PAGES = 4
"""Pages of a text."""
Tree = tuple[int, int, Sequence[int], Sequence[int]]
"""Slot, position of the root, parents of the nodes, and which nodes carry a wrong token."""


def chain(slot: int, start: int, count: int) -> Tree:
    """``count`` tokens of the text, one below the other."""
    return slot, start, [max(node - 1, 0) for node in range(count)], ()


def comb(slot: int, start: int, count: int) -> Tree:
    """The same with a wrong sibling before every node but the root, so that the text leaves the spine."""
    parents, right = [0], 0
    for _ in range(1, count):
        parents += [right, right]
        right = len(parents) - 1
    return slot, start, parents, [node for node in range(1, len(parents)) if node % 2]


@dataclass(frozen=True, slots=True)
class Case:
    """A pass's rows, and a cache that holds what they see and NaN everywhere else."""

    rows: Rows
    pages: Tensor
    """[S+1, P] page table."""
    q: Tensor
    """[R, HQ, HD] fp32, scaled."""
    key: Tensor
    """[cells, HKV, HD]"""
    value: Tensor
    """[cells, HKV, HD]"""
    place: tuple[tuple[int, int] | None, ...]
    """Slot and position of every row that carries the text's own token."""

    @property
    def bound(self) -> int:
        """Of any row's position + 1; a host read."""
        return int(self.rows.position.max()) + 1

    def to(self, device: torch.device) -> Case:
        """A copy there."""
        rows = Rows(*(getattr(self.rows, field.name).to(device) for field in fields(Rows)))
        pages, q, key, value = (x.to(device) for x in (self.pages, self.q, self.key, self.value))
        return Case(rows, pages, q, key, value, self.place)

    def without_nan(self) -> Case:
        """For ``TwinAttention``, which looks at all cells before it masks them."""
        return replace(self, key=self.key.nan_to_num(0.0), value=self.value.nan_to_num(0.0))


class Texts:
    """``PAGES`` pages of text for every slot, in pages of random order."""

    def __init__(self, slots: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        """``dtype`` is the cache's."""
        g = torch.Generator().manual_seed(heads * dim + slots)
        length = PAGES * CHUNK
        self.q = torch.randn(slots, length, heads, dim, generator=g) * dim**-0.5
        self.kv = torch.randn(2, slots, length, kv_heads, dim, generator=g).to(dtype)
        self.pages = (torch.randperm(slots * PAGES, generator=g) + 1).view(slots, PAGES)
        self.pages = torch.cat((self.pages, torch.zeros_like(self.pages[:1])))

    def tree(self, *trees: Tree, padding: int = 0) -> Case:
        """A pass of trees, slots ascending."""
        return self._case([(*tree, True) for tree in trees], padding)

    def prefill(self, *runs: tuple[int, int, int], padding: int = 0) -> Case:
        """A pass of runs of rows without trees: slot, first position, rows."""
        return self._case([(*chain(*run), False) for run in runs], padding)

    def _case(self, trees: Sequence[tuple[int, int, Sequence[int], Sequence[int], bool]], padding: int) -> Case:
        trash = self.pages.shape[0] - 1
        slots, positions, depths, paths = list[int](), list[int](), list[int](), list[list[int]]()
        place = list[tuple[int, int] | None]()
        cache = torch.full((2, (trash * PAGES + 1) * CHUNK, *self.kv.shape[3:]), torch.nan, dtype=self.kv.dtype)
        for slot, start, parents, wrong, grown in trees:
            cache[:, self.cells(slot, torch.arange(start))] = self.kv[:, slot, :start]
            own = list[list[int]]()
            for node, parent in enumerate(parents):
                own.append([*own[parent], node] if node else [0])
                depth = len(own[node]) - 1
                text = self.kv[:, slot, start + depth]
                cache[:, self.cells(slot, torch.tensor(start + node))] = text.flip(0) * 2 if node in wrong else text
                slots.append(slot)
                positions.append(start + depth)
                depths.append(depth if grown else 0)
                paths.append(own[node] if grown else [0])
                place.append(None if node in wrong else (slot, start + depth))
        real = torch.tensor(slots), torch.tensor(positions)
        q = torch.cat((self.q[real], torch.full((padding, *self.q.shape[2:]), 5.0)))
        width = max(map(len, paths))
        path = torch.tensor([one + [-1] * (width - len(one)) for one in [*paths, *[[0]] * padding]])
        tables = (slots + [trash] * padding, positions + [0] * padding, depths + [0] * padding)
        slot_of, position, depth_of = (torch.tensor(table) for table in tables)
        nothing = torch.zeros_like(slot_of)
        # attention reads nothing else of the rows
        rows = Rows(nothing, slot_of, position, depth_of, nothing, nothing, path, nothing[:0], nothing[:0])
        return Case(rows, self.pages, q, cache[0], cache[1], (*place, *[None] * padding))

    def cells(self, slot: int, logical: Tensor) -> Tensor:
        """Where logical cells of a slot lie."""
        return self.pages[slot, logical // CHUNK] * CHUNK + logical % CHUNK
