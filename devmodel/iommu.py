# SPDX-License-Identifier: Apache-2.0
"""The type1 IOMMU of a container: which I/O virtual addresses stand for which memory of which client.

This is the mediated kind: mapping only registers, and device models read and write through the database.

State: under ``Type1.lock``, so that a DMA in flight is over when an unmap returns. Called from the device
lane (map, unmap) and from whichever thread does DMA. Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU".
"""

import errno
import threading
from bisect import bisect_left, bisect_right
from enum import IntFlag
from typing import NamedTuple

from devmodel.client import Client

PAGE_SIZE = 4096
PGSIZES = 2**64 - PAGE_SIZE
"""Bitmap of page sizes: any power of two from 4 KiB, as a container of mediated devices alone reports."""
DMA_ENTRY_LIMIT = 65535
"""Mappings in a container, the default of vfio_iommu_type1's ``dma_entry_limit``."""

_END = 2**64


class Prot(IntFlag):
    """What a device may do with mapped memory."""

    READ = 1
    WRITE = 2


class Mapping(NamedTuple):
    """``size`` bytes from ``iova`` are ``client``'s memory from ``vaddr``."""

    iova: int
    size: int
    vaddr: int
    prot: Prot
    client: Client

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.iova + self.size


class Segment(NamedTuple):
    """A part of a DMA that is contiguous in one client's memory."""

    client: Client
    vaddr: int
    size: int
    prot: Prot


class Type1:
    """Mappings sorted by iova: a lookup is a bisection, an insertion moves pointers only."""

    __slots__ = ("_mappings", "_starts", "limit", "lock", "v2")

    def __init__(self, v2: bool = True, limit: int = DMA_ENTRY_LIMIT) -> None:
        """``v2`` chooses TYPE1v2's unmap, which never splits or overshoots; ``limit`` bounds the mappings."""
        self.v2 = v2
        self.limit = limit
        self.lock = threading.Lock()
        self._starts: list[int] = []
        self._mappings: list[Mapping] = []

    @property
    def pgsizes(self) -> int:
        """Bitmap of the supported page sizes."""
        return PGSIZES

    @property
    def dma_avail(self) -> int:
        """How many more mappings fit."""
        return self.limit - len(self._starts)

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Valid ranges as (first, last) iova: all of it, without a physical IOMMU that reserves any."""
        return ((0, _END - 1),)

    def map(self, client: Client, iova: int, vaddr: int, size: int, prot: Prot) -> None:
        """Let ``size`` bytes from ``iova`` stand for ``client``'s memory from ``vaddr``; touches none of it.

        Raises ``OSError``: EINVAL (no protection, no size, misaligned), EOVERFLOW (wraps around), EEXIST
        (overlaps a mapping), ENOSPC (too many mappings).
        """
        prot &= Prot.READ | Prot.WRITE
        if not prot:
            raise OSError(errno.EINVAL, "a mapping must be readable or writable by the device")
        _check_range(size, iova, vaddr)
        with self.lock:
            place = bisect_left(self._starts, iova + size)
            if place and self._mappings[place - 1].end > iova:
                raise OSError(errno.EEXIST, f"iova {iova:#x} is mapped already")
            if not self.dma_avail:
                raise OSError(errno.ENOSPC, f"{self.limit} mappings are the limit")
            self._starts.insert(place, iova)
            self._mappings.insert(place, Mapping(iova, size, vaddr, prot, client))

    def unmap(self, iova: int, size: int, all: bool = False) -> int:
        """Remove the mappings of a range, or all (then both numbers are 0); returns the bytes unmapped.

        v2 raises ``OSError(EINVAL)`` where an edge of the range would split a mapping. v1 removes the whole
        of each mapping that starts in the range, and nothing when the range starts inside one. Otherwise
        EINVAL and EOVERFLOW as :meth:`map`. No mappings in the range is no error: 0.
        """
        if all:
            return self._unmap_all(iova, size)
        _check_range(size, iova)
        with self.lock:
            first, last = bisect_left(self._starts, iova), bisect_left(self._starts, iova + size)
            if self._inside(iova):
                if self.v2:
                    raise OSError(errno.EINVAL, f"iova {iova:#x} is inside a mapping")
                return 0
            if self.v2 and self._inside(iova + size):
                raise OSError(errno.EINVAL, f"iova {iova + size:#x} is inside a mapping")
            return self._remove(first, last)

    def translate(self, iova: int, size: int) -> list[Segment]:
        """The client memory behind ``size`` bytes from ``iova``; ``OSError(EFAULT)`` for a hole."""
        with self.lock:
            return self._translate(iova, size)

    def dma_read(self, iova: int, size: int) -> bytes:
        """What a device reads from ``iova``; ``OSError(EFAULT)`` for a hole, a lack of READ or bad memory."""
        with self.lock:
            parts = self._permitted(iova, size, Prot.READ)
            return b"".join(part.client.read(part.vaddr, part.size) for part in parts)

    def dma_write(self, iova: int, data: bytes) -> None:
        """A device's write to ``iova``; ``OSError`` as :meth:`dma_read`.

        Nothing is written unless the whole range is mapped and writable.
        """
        with self.lock:
            view = memoryview(data)
            for part in self._permitted(iova, len(data), Prot.WRITE):
                part.client.write(part.vaddr, bytes(view[: part.size]))
                view = view[part.size :]

    def clear(self) -> None:
        """Forget every mapping: the container is no longer in use."""
        with self.lock:
            self._remove(0, len(self._starts))

    def _inside(self, iova: int) -> bool:
        """Whether ``iova`` lies strictly inside a mapping, so that cutting there would split it."""
        place = bisect_left(self._starts, iova)
        return place > 0 and self._mappings[place - 1].end > iova

    def _unmap_all(self, iova: int, size: int) -> int:
        if iova or size:
            raise OSError(errno.EINVAL, "unmapping all takes neither iova nor size")
        with self.lock:
            return self._remove(0, len(self._starts))

    def _remove(self, first: int, last: int) -> int:
        unmapped = sum(mapping.size for mapping in self._mappings[first:last])
        del self._starts[first:last], self._mappings[first:last]
        return unmapped

    def _permitted(self, iova: int, size: int, prot: Prot) -> list[Segment]:
        parts = self._translate(iova, size)
        if not all(part.prot & prot for part in parts):
            raise OSError(errno.EFAULT, f"DMA {prot.name} at iova {iova:#x} is not permitted")
        return parts

    def _translate(self, iova: int, size: int) -> list[Segment]:
        parts: list[Segment] = []
        place = bisect_right(self._starts, iova) - 1
        position, end = iova, iova + size
        while position < end:
            mapping = self._mappings[place] if 0 <= place < len(self._mappings) else None
            if mapping is None or not mapping.iova <= position < mapping.end:
                raise OSError(errno.EFAULT, f"iova {position:#x} is not mapped")
            length = min(end, mapping.end) - position
            vaddr = mapping.vaddr + position - mapping.iova
            parts.append(Segment(mapping.client, vaddr, length, mapping.prot))
            position, place = position + length, place + 1
        return parts


def _check_range(size: int, *addresses: int) -> None:
    if not size or any(number % PAGE_SIZE for number in (size, *addresses)):
        raise OSError(errno.EINVAL, f"a range of {size:#x} bytes is empty or not whole, aligned pages")
    if any(address + size > _END for address in addresses):
        raise OSError(errno.EOVERFLOW, "the range wraps around the end of the address space")
