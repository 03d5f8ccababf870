"""Accounting of KV pages, by id.  Torch-free.

A page is *free*, *held* by one request or more, or *kept*: held by nobody, but what it contains is known by a key
(prefix.py), so that a request with the same text can have it.  Kept pages are given up, least recently used first,
when free ones run out.  Page 0 is the trash page: padding rows write there and it is never handed out.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class PagePool:
    """Pages ``1 .. total``; low ids first, so that a request's pages tend to follow one another."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(1, total + 1))
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Least recently used first."""
        self._key: dict[int, bytes] = {}
        self._page: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones, and kept ones at the price of what they hold."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Held pages."""
        return len(self._holders)

    @property
    def kept(self) -> int:
        return len(self._kept)

    def take(self, count: int) -> list[int]:
        """Hand out ``count`` pages with one holder each; raises ``ValueError`` if fewer are available."""
        if count > self.available:
            raise ValueError(f"{count} pages asked for, {self.available} available")
        taken = [heapq.heappop(self._free) if self._free else self._evict() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def _evict(self) -> int:
        page, _ = self._kept.popitem(last=False)
        del self._page[self._key.pop(page)]
        return page

    def find(self, key: bytes) -> int | None:
        """The page published under ``key``, if it is still there."""
        return self._page.get(key)

    def share(self, page: int) -> None:
        """One more holder of a page that ``find`` gave."""
        self._kept.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1

    def publish(self, page: int, key: bytes) -> None:
        """Say what a held page contains.  Where another page has the same, that one stays the one to be found."""
        if self._holders.get(page, 0) < 1:
            raise ValueError(f"page {page} is held by nobody")
        if page not in self._key and key not in self._page:
            self._key[page], self._page[key] = key, page

    def drop(self, pages: Sequence[int]) -> None:
        """One holder less of each, a request's pages in their order; raises ``KeyError`` for a page that is not held.

        The last pages of a text are given up before its first, without which they are worth nothing.
        """
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                del self._holders[page]
                if page in self._key:
                    self._kept[page] = None
                else:
                    heapq.heappush(self._free, page)

    def forget(self) -> None:
        """Keep nothing any more: what is kept becomes free, and nothing that was published is found again."""
        for page in self._kept:
            heapq.heappush(self._free, page)
        self._kept.clear()
        self._key.clear()
        self._page.clear()

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Every page is in one state, and held as often as the requests' page lists ``held`` say.

        Raises ``AssertionError``.
        """
        if Counter(page for pages in held for page in pages) != Counter(self._holders):
            raise AssertionError("pages are not held by those who think they hold them")
        states = [*self._free, *self._kept, *self._holders]
        if sorted(states) != list(range(1, self.total + 1)):
            raise AssertionError(f"pages lost or in two states: {len(states)} known of {self.total}")
        if any(self._page.get(key) != page for page, key in self._key.items()) or len(self._page) != len(self._key):
            raise AssertionError("keys and pages do not belong together")
        if not self._kept.keys() <= self._key.keys() or self._key.keys() & set(self._free):
            raise AssertionError("a page is kept without a key, or free with one")
