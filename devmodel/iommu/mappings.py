# SPDX-License-Identifier: Apache-2.0
"""The database of a container: which I/O virtual addresses stand for which memory of which client.

State: under the lock of the :class:`devmodel.iommu.type1.Type1` that owns it; nothing here locks.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from devmodel.client import Client, Pages
from devmodel.iommu.api import PAGE_SIZE, Prot
from devmodel.iommu.dirty import DirtyPages

BLOCK = 512
"""Starts in a block at most: an insertion moves this many pointers, not those of all 65,535 mappings."""


class Mapping:
    """``size`` bytes from ``iova`` are ``client``'s memory from ``vaddr``.

    ``pages`` is that memory while a pinning backend holds it; ``pins`` counts, by page of the mapping, what
    mediated devices pinned; ``charged`` is how many pages are accounted to the client. ``dirty`` is None
    until a device writes while dirty pages are tracked. ``live`` ends, for good, when it leaves the database.
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
        "prot",
        "size",
        "vaddr",
        "vaddr_valid",
    )

    def __init__(self, client: Client, iova: int, vaddr: int, size: int, prot: Prot) -> None:
        self.client = client
        self.iova = iova
        self.vaddr = vaddr
        self.size = size
        self.end = iova + size
        self.prot = prot
        self.allows = int(prot)  # the same as a plain number: an IntFlag is slow to ask
        self.vaddr_valid = True
        self.live = True
        self.pages: Pages | None = None
        self.pins: dict[int, int] | None = None
        self.charged = 0
        self.dirty: DirtyPages | None = None

    @property
    def page_count(self) -> int:
        """Its size in pages."""
        return self.size // PAGE_SIZE

    def written(self, offset: int, size: int) -> None:
        """A device wrote ``size`` bytes at ``offset`` while dirty pages are tracked."""
        if self.dirty is None:
            self.dirty = DirtyPages(self.page_count)
        self.dirty.mark(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE)


class Mappings:
    """Mappings by iova; they never overlap. A lookup is two bisections, whatever their number."""

    __slots__ = ("_blocks", "_by_start", "_firsts")

    def __init__(self) -> None:
        self._by_start: dict[int, Mapping] = {}
        self._blocks: list[list[int]] = []
        self._firsts: list[int] = []

    def __len__(self) -> int:
        return len(self._by_start)

    def __iter__(self) -> Iterator[Mapping]:
        """In the order of their iovas; change nothing meanwhile."""
        return (self._by_start[start] for block in self._blocks for start in block)

    def exact(self, iova: int, end: int) -> Mapping | None:
        """The mapping of exactly this range."""
        mapping = self._by_start.get(iova)
        return mapping if mapping is not None and mapping.end == end else None

    def covering(self, iova: int) -> Mapping | None:
        """The mapping that has this address."""
        index = bisect_right(self._firsts, iova) - 1
        if index < 0:
            return None
        block = self._blocks[index]
        mapping = self._by_start[block[bisect_right(block, iova) - 1]]
        return mapping if iova < mapping.end else None

    def overlaps(self, iova: int, end: int) -> bool:
        """Whether a mapping has an address of the range."""
        index = bisect_left(self._firsts, end) - 1
        if index < 0:
            return False
        block = self._blocks[index]
        return self._by_start[block[bisect_left(block, end) - 1]].end > iova

    def within(self, iova: int, end: int) -> list[Mapping]:
        """Those that have an address of the range, in order."""
        first = self.covering(iova)
        found = [] if first is None or first.iova == iova else [first]
        index = max(bisect_right(self._firsts, iova) - 1, 0)
        for block in self._blocks[index : bisect_left(self._firsts, end)]:
            starts = block[bisect_left(block, iova) : bisect_left(block, end)]
            found.extend(self._by_start[start] for start in starts)
        return found

    def add(self, mapping: Mapping) -> None:
        """Enter one that overlaps no other."""
        iova = mapping.iova
        self._by_start[iova] = mapping
        if not self._blocks:
            self._blocks.append([iova])
            self._firsts.append(iova)
            return
        index = max(bisect_right(self._firsts, iova) - 1, 0)
        block = self._blocks[index]
        insort(block, iova)
        self._firsts[index] = block[0]
        if len(block) > BLOCK:
            self._split(index)

    def remove(self, mapping: Mapping) -> None:
        """Take one out that is in."""
        mapping.live = False
        del self._by_start[mapping.iova]
        index = bisect_right(self._firsts, mapping.iova) - 1
        block = self._blocks[index]
        del block[bisect_left(block, mapping.iova)]
        if block:
            self._firsts[index] = block[0]
        else:
            del self._blocks[index], self._firsts[index]

    def clear(self) -> None:
        """Take all out."""
        for mapping in self._by_start.values():
            mapping.live = False
        self._by_start.clear()
        self._blocks.clear()
        self._firsts.clear()

    def _split(self, index: int) -> None:
        block = self._blocks[index]
        half = len(block) // 2
        self._blocks.insert(index + 1, block[half:])
        self._firsts.insert(index + 1, block[half])
        del block[half:]
