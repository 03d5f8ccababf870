"""Accounting of KV pages, by id.  Page 0 is the trash page: padding rows write there and it is never handed out."""

from __future__ import annotations

from bisect import insort


class PagePool:
    """Hands out pages ``1 .. total``; low ids first, so that a request's pages tend to follow one another."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(1, total + 1))
        self._held: dict[str, tuple[int, ...]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def allocate(self, owner: str, count: int) -> tuple[int, ...]:
        """Give ``count`` pages to ``owner``; raises ``ValueError`` if it holds some already or too few are free."""
        if owner in self._held:
            raise ValueError(f"{owner} already holds pages")
        if count > len(self._free):
            raise ValueError(f"{count} pages asked for, {len(self._free)} free")
        start = self._run(count)
        pages = tuple(self._free[start : start + count])
        del self._free[start : start + count]
        self._held[owner] = pages
        return pages

    def release(self, owner: str) -> None:
        """Take back what ``owner`` holds; raises ``KeyError`` if it holds nothing."""
        for page in self._held.pop(owner):
            insort(self._free, page)

    def check_integrity(self) -> None:
        """Every page is free or held exactly once; raises ``AssertionError`` otherwise."""
        seen = sorted([*self._free, *(page for pages in self._held.values() for page in pages)])
        if seen != list(range(1, self.total + 1)):
            raise AssertionError(f"pages lost or held twice: {len(seen)} known of {self.total}")

    def _run(self, count: int) -> int:
        """Where the first run of ``count`` consecutive ids begins in the free list; 0 when there is none."""
        start = 0
        for i in range(1, len(self._free)):
            if i - start >= count:
                break
            if self._free[i] != self._free[i - 1] + 1:
                start = i
        return start if start + count <= len(self._free) else 0
