# SPDX-License-Identifier: Apache-2.0
"""How often each page of some memory is held, and what is pinned of it.

State: under the lock of who owns it; nothing here locks. It is kept by stretches of pages that are alike, so
it takes memory for the holds, not for the size of the memory, which a hostile client may make as large as it
likes. Source: Documentation/userspace-api/iommufd.rst (iopt_pages).
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from devmodel.client import Pages

Ranges = Sequence[tuple[int, int]]
"""Ranges of pages that do not overlap. Each is the number of its first page, and that of the page behind its
last. The number of a page is its address / PAGE_SIZE."""


class Stretch(NamedTuple):
    """Pages that are held ``holds`` times each. ``pages`` is memory that is pinned from page number ``base``
    on."""

    holds: int
    pages: Pages | None
    base: int


_FREE = Stretch(0, None, 0)


class HeldPages:
    """The holds of pages, by their numbers. ``total`` is the number of pages that are held at all."""

    __slots__ = ("_firsts", "_stretches", "total")

    def __init__(self) -> None:
        self.total = 0
        self._firsts = [0]
        self._stretches = [_FREE]

    def add(self, ranges: Ranges) -> int:
        """Hold each of these pages once more. Returns how many were not held before."""
        return self._count(ranges, 1, [])

    def remove(self, ranges: Ranges, let_go: list[Pages | None]) -> int:
        """Undo one hold of each of these pages. Returns how many are not held any more. What was pinned for
        these is moved to ``let_go``: its end may take a while."""
        return -self._count(ranges, -1, let_go)

    def keep(self, first: int, end: int, pages: Pages, base: int) -> None:
        """``pages``, which begins with page ``base``, is pinned for the pages from ``first`` to before
        ``end``, as far as these are held and nothing is pinned for them."""
        low, high = self._cut(first), self._cut(end)
        for index in range(low, high):
            holds, pinned, _ = self._stretches[index]
            if holds and pinned is None:
                self._stretches[index] = Stretch(holds, pages, base)
        self._join(low, high)

    def pinned(self, first: int, end: int) -> list[tuple[int, int, Stretch]]:
        """The pages from ``first`` to before ``end`` as stretches: the first page of each, the one behind its
        last, and what they have in common."""
        found = []
        index = bisect_right(self._firsts, first) - 1
        while first < end:
            behind = self._firsts[index + 1] if index + 1 < len(self._firsts) else end
            found.append((first, min(behind, end), self._stretches[index]))
            first, index = behind, index + 1
        return found

    def _count(self, ranges: Ranges, step: int, let_go: list[Pages | None]) -> int:
        before = self.total
        for first, end in ranges:
            low, high = self._cut(first), self._cut(end)
            for index in range(low, high):
                holds, pages, base = self._stretches[index]
                now = holds + step
                self._stretches[index] = Stretch(now, pages, base) if now else _FREE
                if not now:
                    let_go.append(pages)
                if not now or not holds:
                    self.total += step * (self._firsts[index + 1] - self._firsts[index])
            self._join(low, high)
        return self.total - before

    def _cut(self, page: int) -> int:
        """The index of the stretch that begins at ``page``, which is made."""
        index = bisect_right(self._firsts, page) - 1
        if self._firsts[index] == page:
            return index
        self._firsts.insert(index + 1, page)
        self._stretches.insert(index + 1, self._stretches[index])
        return index + 1

    def _join(self, low: int, high: int) -> None:
        """Make one of neighbours that are alike, from the stretch before ``low`` to that at ``high``."""
        for index in range(high, max(low - 1, 0), -1):
            if self._stretches[index] == self._stretches[index - 1]:
                del self._firsts[index], self._stretches[index]
