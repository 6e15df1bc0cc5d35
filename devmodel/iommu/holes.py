# SPDX-License-Identifier: Apache-2.0
"""Finds the lowest hole between the mappings of an address space, for an API that chooses iovas itself.

A search begins where an earlier one of its kind has ended, after a look at the ranges that were unmapped
since. So it costs the same for one mapping as for 65,535 of them. The first search of a kind passes blocks of
mappings by a bound of their largest hole.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace`; nothing here locks.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple

from devmodel.iommu.api import ADDRESSES
from devmodel.iommu.mappings import UNKNOWN, Mappings

FREED = 4096
"""The most removed mappings that are remembered until the next search. After more of them it begins anew."""
KINDS = 8
"""The most kinds of searches of which something is remembered."""


class Room(NamedTuple):
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


class _Known:
    """What earlier searches of a kind have found: it fits nowhere below ``start`` but in ranges that were
    ``freed`` since, a heap of (first, end)."""

    __slots__ = ("freed", "start")

    def __init__(self, start: int, freed: list[tuple[int, int]]) -> None:
        self.start, self.freed = start, freed

    def add(self, first: int, end: int) -> None:
        """A mapping has been removed. ``first`` is where its hole begins."""
        if first < self.start:
            heappush(self.freed, (first, end))
            if len(self.freed) > FREED:
                self.start = self.freed[0][0]
                self.freed.clear()


class Holes:
    """Searches between ``mappings``."""

    __slots__ = ("_known", "_mappings")

    def __init__(self, mappings: Mappings) -> None:
        self._mappings = mappings
        self._known: dict[Room, _Known] = {}
        """By what was searched for. The last one was used last."""

    def forget(self) -> None:
        """The ranges in which searches look are others from now on."""
        self._known.clear()

    def is_quick(self, wanted: Room) -> bool:
        """Whether a search for ``wanted`` looks at a few holes only."""
        freed = self._mappings.freed
        return wanted in self._known and freed is not None and len(freed) < FREED

    def find(self, wanted: Room, ranges: Sequence[tuple[int, int]]) -> int | None:
        """The lowest address for ``wanted`` that lies in one of ``ranges`` (first, last), which are in order,
        and in no mapping. None if there is none."""
        self._catch_up()
        known = self._knowledge(wanted)
        found = self._in_freed(known, wanted, ranges)
        if found is not None and found <= known.start:
            return found
        start = self._hole_start(known.start) if known.start < ADDRESSES else ADDRESSES
        behind = self._between(start, ADDRESSES - 1, wanted, ranges)
        known.start = ADDRESSES if behind is None else behind
        return found if found is not None and found < known.start else behind

    def _knowledge(self, wanted: Room) -> _Known:
        """What is known of a kind, by what its search has found and by what easier searches have.

        It is not remembered for an ``offset``: there a smaller hole may have a lower address than a larger
        one, so that a new mapping makes room.
        """
        known = self._known
        mine = known.pop(wanted, None)
        if mine is None:
            easier = [
                one for one in known if one.length <= wanted.length and one.alignment <= wanted.alignment
            ]
            best = max(easier, key=lambda one: known[one].start, default=None)
            if best is None:
                mine = _Known(0, [])
            else:
                known[best] = known.pop(best)
                mine = _Known(known[best].start, known[best].freed.copy())
        if not wanted.offset:
            known[wanted] = mine
            if len(known) > KINDS:
                del known[next(iter(known))]
        return mine

    def _in_freed(self, known: _Known, wanted: Room, ranges: Sequence[tuple[int, int]]) -> int | None:
        """The lowest address in a hole where a mapping was removed."""
        while known.freed:
            first, end = known.freed[0]
            found = self._between(self._hole_start(first), self._hole_end(end - 1), wanted, ranges)
            if found is not None:
                heapreplace(known.freed, (min(found, end - 1), end))
                return found
            heappop(known.freed)
        return None

    def _catch_up(self) -> None:
        """Take notice of the mappings that have been removed since the last search."""
        mappings = self._mappings
        freed = mappings.freed
        if freed is None:
            mappings.freed = deque(maxlen=FREED)
            mappings.gaps[:] = [UNKNOWN] * len(mappings.gaps)
            self._known.clear()
        elif len(freed) >= FREED:  # there may have been more
            freed.clear()
            self._known.clear()
        else:
            while freed:
                first, end = freed.popleft()
                start = self._hole_start(first)
                for known in self._known.values():
                    known.add(start, end)

    def _hole_start(self, iova: int) -> int:
        """The first address of the hole that has ``iova``, or ``iova`` if that is mapped."""
        mappings = self._mappings
        index = bisect_right(mappings.firsts, iova) - 1
        if index < 0:
            return 0
        block = mappings.blocks[index]
        return min(mappings.by_start[block[bisect_right(block, iova) - 1]].end, iova)

    def _hole_end(self, iova: int) -> int:
        """The last address of the hole that has ``iova``, or ``iova`` if that is mapped."""
        mappings = self._mappings
        if mappings.covering(iova) is not None:
            return iova
        index = bisect_right(mappings.firsts, iova)
        block = mappings.blocks[index - 1] if index else []
        at = bisect_right(block, iova)
        if at < len(block):
            return block[at] - 1
        return (mappings.firsts[index] if index < len(mappings.firsts) else ADDRESSES) - 1

    def _between(self, low: int, high: int, wanted: Room, ranges: Sequence[tuple[int, int]]) -> int | None:
        """The lowest address for ``wanted`` from ``low`` to ``high``."""
        for number in range(max(bisect_right(ranges, (low, ADDRESSES)) - 1, 0), len(ranges)):
            first, last = ranges[number]
            if first > high:
                return None
            found = self._search(wanted, max(first, low), min(last, high))
            if found is not None:
                return found
        return None

    def _search(self, wanted: Room, first: int, last: int) -> int | None:
        """The lowest address for ``wanted`` from ``first`` to ``last``."""
        if not wanted.offset and wanted.fits(first, last) is None:
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
                if not at and found is None and largest < gaps[index]:
                    gaps[index] = largest
            at, index = 0, index + 1
        return found

    def _search_block(
        self, wanted: Room, index: int, at: int, first: int, last: int
    ) -> tuple[int | None, int]:
        """The lowest address in the holes behind the mappings of a block, from number ``at`` on, and the size
        of the largest hole that it has seen, :data:`UNKNOWN` if it did not see all."""
        mappings = self._mappings
        by_start, block, firsts = mappings.by_start, mappings.blocks[index], mappings.firsts
        stop = bisect_right(block, last, at)
        nexts = block[at + 1 : stop + 1]
        if stop == len(block):
            nexts.append(firsts[index + 1] if index + 1 < len(firsts) else ADDRESSES)
        length, largest = wanted.length, 0
        for start, end in zip(block[at:stop], nexts, strict=True):
            hole = by_start[start].end
            size = end - hole
            if size > largest:
                largest = size
            if size >= length:
                found = wanted.fits(max(hole, first), min(end - 1, last))
                if found is not None:
                    return found, largest
        return None, largest if stop == len(block) else UNKNOWN
