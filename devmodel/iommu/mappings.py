# SPDX-License-Identifier: Apache-2.0
"""The mappings of an address space, from I/O virtual addresses to memory of clients.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace` that owns it; nothing here locks.
"""

import errno
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence

from devmodel.client import Client, Pages
from devmodel.iommu.api import ADDRESSES, PAGE_SIZE, Prot
from devmodel.iommu.dirty import DirtyPages

NO_ACCESS = 4
"""What :attr:`Mapping.allows` is for a mapping that no device may use, which is not being made any more."""
PROTS = (*(Prot(number) for number in range(4)), Prot(0))
BLOCK = 512
"""The most starts in a block. An insertion moves this many pointers, not those of all 65,535 mappings."""
UNKNOWN = ADDRESSES
"""In :attr:`Mappings.gaps`: the holes of the block are not known."""


class Mapping:
    """``size`` bytes from ``iova`` are ``client``'s memory from ``vaddr``.

    ``allows`` is 0 while the mapping is being made: its range is taken, but no device may use it yet. It is
    :data:`NO_ACCESS` for one that no device may ever use.
    ``pages`` is that memory while a pinning backend holds it. ``pins`` counts the pins of mediated devices by
    page of the mapping. ``charged`` is the number of pages that are charged to the client. ``dirty`` is None
    until a device writes while dirty pages are tracked. ``live`` turns false for good when the mapping is
    removed.
    """

    __slots__ = (
        "allows",
        "charged",
        "client",
        "dirty",
        "end",
        "iova",
        "live",
        "pages",
        "pins",
        "size",
        "vaddr",
        "vaddr_valid",
    )

    def __init__(self, client: Client, iova: int, vaddr: int, size: int, allows: int) -> None:
        """``allows`` is the number of a :class:`Prot`, or :data:`NO_ACCESS`."""
        self.client = client
        self.iova = iova
        self.vaddr = vaddr
        self.size = size
        self.end = iova + size
        self.allows = allows
        self.vaddr_valid = True
        self.live = True
        self.pages: Pages | None = None
        self.pins: dict[int, int] | None = None
        self.charged = 0
        self.dirty: DirtyPages | None = None

    @property
    def prot(self) -> Prot:
        """The accesses that a device may make. ``allows`` is the same as a plain number, which is faster to
        test."""
        return PROTS[self.allows]

    @property
    def page_count(self) -> int:
        """The size in pages, rounded up. A mapping of other sizes is never pinned."""
        return -(-self.size // PAGE_SIZE)

    def written(self, offset: int, size: int) -> None:
        """A device wrote ``size`` bytes at ``offset`` while dirty pages are tracked."""
        if self.dirty is None:
            self.dirty = DirtyPages(self.page_count)
        self.dirty.mark(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE)

    def hold_dirty(self) -> None:
        """The pages that mediated devices hold pinned are dirty: the device may write to them at any time."""
        for page in self.pins or ():
            self.written(page * PAGE_SIZE, PAGE_SIZE)

    def take_dirty(self, whole: bool) -> DirtyPages | None:
        """The pages to report as dirty now. From then on only the pinned ones are dirty. ``whole``: physical
        functions, whose writes nobody sees, may reach what is pinned for them."""
        dirty = DirtyPages(self.page_count, whole=True) if whole and self.pages is not None else self.dirty
        self.dirty = None
        self.hold_dirty()
        return dirty

    def still_dirty(self, taken: DirtyPages | None) -> None:
        """Put back the pages ``taken`` from :attr:`dirty`, because they could not be reported."""
        if self.dirty is None:
            self.dirty = taken
        elif taken is not None:
            self.dirty.merge(taken)


class Mappings:
    """Mappings by iova. They never overlap. A lookup is always two bisections."""

    __slots__ = ("blocks", "by_start", "firsts", "freed", "gaps", "tracked")

    def __init__(self) -> None:
        self.tracked = False
        """Whether devices' writes are marked in the mappings."""
        self.by_start: dict[int, Mapping] = {}
        """The mappings by their first iova, read-only for callers. It is public because a method call would
        double the cost of a look-up."""
        self.blocks: list[list[int]] = []
        """The first iovas of all mappings, in order, in blocks. Read-only for callers, as the next one."""
        self.firsts: list[int] = []
        """The first number of each block."""
        self.gaps: list[int] = []
        """For each block a size that no hole behind one of its mappings exceeds. It is found by searches of
        :mod:`devmodel.iommu.holes`, and means nothing before the first one."""
        self.freed: deque[tuple[int, int]] | None = None
        """The ranges (first, end) of mappings that were removed since the last search, None without one."""

    def __len__(self) -> int:
        return len(self.by_start)

    def __iter__(self) -> Iterator[Mapping]:
        """All mappings by iova. Change nothing during the iteration."""
        return (self.by_start[start] for block in self.blocks for start in block)

    def exact(self, iova: int, end: int) -> Mapping | None:
        """The mapping of exactly this range."""
        mapping = self.by_start.get(iova)
        return mapping if mapping is not None and mapping.end == end else None

    def covering(self, iova: int) -> Mapping | None:
        """The mapping that has this address."""
        index = bisect_right(self.firsts, iova) - 1
        if index < 0:
            return None
        block = self.blocks[index]
        mapping = self.by_start[block[bisect_right(block, iova) - 1]]
        return mapping if iova < mapping.end else None

    def split_by(self, iova: int, end: int) -> int | None:
        """The edge of the range that would split a mapping, None if neither does. The edges are the first
        address of the range and the one behind its last."""
        for edge in (iova, end):
            mapping = self.covering(edge)
            if mapping is not None and mapping.iova != edge:
                return edge
        return None

    def within(self, iova: int, end: int, most: int = ADDRESSES) -> list[Mapping]:
        """The mappings that have an address of the range, in order: the first ``most`` of them, perhaps a
        few more."""
        first = self.covering(iova)
        found = [] if first is None or first.iova == iova else [first]
        index = max(bisect_right(self.firsts, iova) - 1, 0)
        for block in self.blocks[index : bisect_left(self.firsts, end)]:
            starts = block[bisect_left(block, iova) : bisect_left(block, end)]
            found.extend(self.by_start[start] for start in starts)
            if len(found) >= most:
                break
        return found

    def add(self, mapping: Mapping) -> bool:
        """Enter a mapping. False, with nothing changed, when it overlaps another one."""
        iova, blocks, by_start = mapping.iova, self.blocks, self.by_start
        index = -1
        if blocks and blocks[-1][-1] < iova:  # behind all others, which is the most common case
            block = blocks[-1]
            at = len(block)
        else:
            index = bisect_left(self.firsts, mapping.end) - 1
            if index < 0:
                self._add_first(mapping)
                return True
            block = blocks[index]
            at = bisect_left(block, mapping.end)
        if by_start[block[at - 1]].end > iova:
            return False
        by_start[iova] = mapping
        block.insert(at, iova)
        if len(block) > BLOCK:
            self._split(index)
        return True

    def remove(self, mapping: Mapping) -> None:
        """Remove a mapping that is in the database."""
        mapping.live = False
        iova = mapping.iova
        del self.by_start[iova]
        index = bisect_right(self.firsts, iova) - 1
        block = self.blocks[index]
        at = bisect_left(block, iova)
        del block[at]
        if not block:
            del self.blocks[index], self.firsts[index], self.gaps[index]
        elif not at:
            self.firsts[index] = block[0]
        if self.freed is not None:
            self.freed.append((iova, mapping.end))
            if at or index:  # the hole is behind the mapping before, which may be in the block before
                self.gaps[index if at else index - 1] = UNKNOWN

    def clear(self) -> None:
        """Remove all mappings."""
        for mapping in self.by_start.values():
            mapping.live = False
        self.by_start.clear()
        self.blocks.clear()
        self.firsts.clear()
        self.gaps.clear()
        self.freed = None

    def _add_first(self, mapping: Mapping) -> None:
        """Enter a mapping that lies before all others."""
        iova = mapping.iova
        self.by_start[iova] = mapping
        if not self.blocks or len(self.blocks[0]) >= BLOCK:
            self.blocks.insert(0, [iova])
            self.firsts.insert(0, iova)
            self.gaps.insert(0, UNKNOWN)
        else:
            self.blocks[0].insert(0, iova)
            self.firsts[0] = iova
            self.gaps[0] = UNKNOWN

    def _split(self, index: int) -> None:
        index %= len(self.blocks)
        block = self.blocks[index]
        half = len(block) // 2
        self.blocks.insert(index + 1, block[half:])
        self.firsts.insert(index + 1, block[half])
        self.gaps[index : index + 1] = (UNKNOWN, UNKNOWN)
        del block[half:]


def is_mapped(iova: int) -> OSError:
    """The error of a new mapping from ``iova`` that overlaps another one."""
    return OSError(errno.EEXIST, f"iova {iova:#x} is mapped already")


def extent(found: Sequence[Mapping], span: tuple[int, int]) -> tuple[int, int]:
    """The range from the start of the first to the end of the last of ``found``, which is in order.

    It may be larger than ``span``, because an unmap may remove whole mappings that only begin in ``span``.
    When nothing was found it is ``span``.
    """
    return (found[0].iova, found[-1].end) if found else span


def runs(found: Sequence[Mapping]) -> list[tuple[int, int]]:
    """The ranges that the mappings, in order, cover together, with a hole between each and the next."""
    ranges: list[tuple[int, int]] = []
    for mapping in found:
        if ranges and ranges[-1][1] == mapping.iova:
            ranges[-1] = (ranges[-1][0], mapping.end)
        else:
            ranges.append((mapping.iova, mapping.end))
    return ranges
