# SPDX-License-Identifier: Apache-2.0
"""Finds the lowest hole between the mappings of an address space, for an API that chooses iovas itself.

A search passes blocks of mappings by a bound of their largest hole, and begins where an earlier one for the
same or a smaller size has ended. So it costs the same for one mapping as for 65,535 of them, unless many
holes are large enough but do not have an address of the wanted alignment.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace`; nothing here locks.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from devmodel.iommu.api import ADDRESSES
from devmodel.iommu.mappings import UNKNOWN, Mappings

FREED = 4096
"""The most removed mappings that are remembered until the next search. After more of them it begins anew."""
HINTS = 8
"""The most kinds of searches whose results are remembered."""


class Wanted(NamedTuple):
    """What a search is for: ``length`` bytes whose address is a multiple of ``alignment``, a power of two,
    after which ``offset`` is or-ed to it."""

    length: int
    alignment: int
    offset: int

    def fits(self, first: int, last: int) -> int | None:
        """The lowest address for it in a hole from ``first`` to ``last``. As in the kernel, the last byte of
        a hole is no start."""
        start = (first + self.alignment - 1 & -self.alignment) | self.offset
        return start if start < last and last - start >= self.length - 1 else None


class Holes:
    """Searches between ``mappings``."""

    __slots__ = ("_hints", "_mappings")

    def __init__(self, mappings: Mappings) -> None:
        self._mappings = mappings
        self._hints: dict[Wanted, int] = {}
        """By what was searched for: there is none below this address."""

    def forget(self) -> None:
        """The ranges in which searches look are others from now on."""
        self._hints.clear()

    def find(self, wanted: Wanted, ranges: Sequence[tuple[int, int]]) -> int | None:
        """The lowest address for ``wanted`` that lies in one of ``ranges`` (first, last), which are in order,
        and in no mapping. None if there is none."""
        self._catch_up()
        begin = max((iova for hint, iova in self._hints.items() if _covers(hint, wanted)), default=0)
        for first, last in ranges[max(bisect_right(ranges, (begin, ADDRESSES)) - 1, 0) :]:
            found = self._search(wanted, max(first, begin), last)
            if found is not None:
                self._remember(wanted, found)
                return found
        self._remember(wanted, ADDRESSES)
        return None

    def _remember(self, wanted: Wanted, iova: int) -> None:
        hints = self._hints
        if wanted not in hints and len(hints) >= HINTS:
            del hints[next(iter(hints))]
        hints[wanted] = iova

    def _catch_up(self) -> None:
        """Take notice of the mappings that have been removed since the last search."""
        mappings = self._mappings
        freed = mappings.freed
        if not freed and freed is not None:
            return
        if freed is None or len(freed) >= FREED:
            mappings.freed = deque(maxlen=FREED)
            mappings.gaps[:] = [UNKNOWN] * len(mappings.gaps)
            self._hints.clear()
            return
        for iova in freed:
            index = bisect_right(mappings.firsts, iova) - 1
            if index >= 0:
                mappings.gaps[index] = UNKNOWN
        lowest = self._hole_at(min(freed))
        freed.clear()
        for hint, iova in self._hints.items():
            if iova > lowest:
                self._hints[hint] = lowest

    def _hole_at(self, iova: int) -> int:
        """The first address of the hole that has ``iova``, or ``iova`` if that is mapped."""
        mappings = self._mappings
        index = bisect_right(mappings.firsts, iova) - 1
        if index < 0:
            return 0
        block = mappings.blocks[index]
        return min(mappings.by_start[block[bisect_right(block, iova) - 1]].end, iova)

    def _search(self, wanted: Wanted, first: int, last: int) -> int | None:
        """The lowest address for ``wanted`` from ``first`` to ``last``."""
        if wanted.fits(first, last) is None:
            return None
        mappings = self._mappings
        firsts, blocks, gaps = mappings.firsts, mappings.blocks, mappings.gaps
        index = bisect_right(firsts, first) - 1
        if index < 0:
            found = wanted.fits(first, min(last, firsts[0] - 1 if firsts else last))
            at, index = 0, 0
        else:
            found = None
            at = bisect_right(blocks[index], first) - 1
        while found is None and index < len(blocks) and firsts[index] <= last:
            if at or gaps[index] >= wanted.length:
                found, largest = self._search_block(wanted, index, at, first, last)
                if not at and found is None:
                    gaps[index] = largest
            at, index = 0, index + 1
        return found

    def _search_block(
        self, wanted: Wanted, index: int, at: int, first: int, last: int
    ) -> tuple[int | None, int]:
        """The lowest address in the holes behind the mappings of a block, from number ``at`` on, and the size
        of the largest hole that it has seen."""
        mappings = self._mappings
        by_start, blocks, firsts = mappings.by_start, mappings.blocks, mappings.firsts
        behind = firsts[index + 1] if index + 1 < len(blocks) else ADDRESSES
        block, length, largest = blocks[index], wanted.length, 0
        nexts = block[at + 1 :]
        nexts.append(behind)
        for start, end in zip(block[at:] if at else block, nexts, strict=True):
            hole = by_start[start].end
            size = end - hole
            if size > largest:
                largest = size
            if size >= length:
                found = wanted.fits(max(hole, first), min(end - 1, last))
                if found is not None:
                    return found, largest
        return None, largest


def _covers(hint: Wanted, wanted: Wanted) -> bool:
    """Whether there is no place for ``wanted`` where there was none for ``hint``."""
    if hint.length > wanted.length:
        return False
    if hint.offset:  # two alignments with one offset may give addresses in any order
        return hint[1:] == wanted[1:]
    return hint.alignment <= wanted.alignment
