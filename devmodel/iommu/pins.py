# SPDX-License-Identifier: Apache-2.0
"""The backend of groups of mediated devices. It counts the pages that their drivers pin.

State: under the lock of the address space. Source: Documentation/driver-api/vfio-mediated-device.rst
(vfio_pin_pages, vfio_unpin_pages); the order of checks is vfio_iommu_type1's.
"""

import errno

from devmodel.iommu.api import MAX_PIN_PAGES, PAGE_SIZE, DmaUser, Prot
from devmodel.iommu.backend import Backend, LockedMemory
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.segments import Segment, hold, segments_of


class MediatedBackend(Backend):
    """For mediated devices: a new mapping is not pinned, and pages are pinned when a driver asks for them.

    ``users`` has the devices that can be told of an unmap.
    """

    __slots__ = ("users",)
    emulated = True
    strict = False

    def __init__(self, locked: LockedMemory) -> None:
        super().__init__(locked)
        self.users: list[DmaUser] = []

    def map(self, mapping: Mapping) -> None:
        """Nothing to do: the memory is looked up in the mappings when a device uses it."""

    def unmap(self, mapping: Mapping) -> None:
        """Nothing to do: the unmap has made sure that no page is pinned."""

    def pin(self, mappings: Mappings, iova: int, count: int, prot: Prot) -> tuple[Segment, ...]:
        """Add one pin to each of ``count`` pages from ``iova``. Returns the memory of these pages.

        Raises ``OSError``, with nothing changed: EINVAL (not mapped, no device that can be told of an unmap),
        EPERM (protection), EFAULT (no such memory), ENOMEM (RLIMIT_MEMLOCK).
        """
        if not self.users:
            raise OSError(errno.EINVAL, "no device that can be told of an unmap")
        segments = segments_of(mappings, iova, count * PAGE_SIZE)
        if segments is None:
            raise OSError(errno.EINVAL, f"not all of {count} pages at iova {iova:#x} is mapped")
        if any(prot & ~segment.mapping.prot for segment in segments):
            raise OSError(errno.EPERM, f"iova {iova:#x} is not mapped for {prot.name}")
        held: list[Segment] = []
        pinned = 0
        try:
            for segment in segments:
                held.append(hold(segment, prot))
                self._count(segment.mapping, segment.offset // PAGE_SIZE, segment.size // PAGE_SIZE)
                pinned += segment.size // PAGE_SIZE
        except OSError:
            self.unpin(mappings, iova, pinned)
            raise
        return tuple(held)

    def unpin(self, mappings: Mappings, iova: int, count: int) -> None:
        """Remove one pin from each of ``count`` pages from ``iova``, at most as many as one call may unpin.
        Pages that are not pinned do not change."""
        size = min(count, MAX_PIN_PAGES) * PAGE_SIZE
        for segment in segments_of(mappings, iova, size, holes=True) or ():
            first = segment.offset // PAGE_SIZE
            for page in range(first, first + segment.size // PAGE_SIZE):
                self._uncount(segment.mapping, page)

    def _count(self, mapping: Mapping, first: int, count: int) -> None:
        pins = {} if mapping.pins is None else mapping.pins
        new = sum(page not in pins for page in range(first, first + count))
        if mapping.pages is None:  # otherwise they are charged already
            self.locked.settle(mapping, len(pins) + new)
        for page in range(first, first + count):
            pins[page] = pins.get(page, 0) + 1
        mapping.pins = pins

    def _uncount(self, mapping: Mapping, page: int) -> None:
        count = (mapping.pins or {}).get(page, 0)
        if mapping.pins is None or not count:
            return
        if count > 1:
            mapping.pins[page] = count - 1
            return
        del mapping.pins[page]
        if mapping.pages is None:
            self.locked.settle(mapping, len(mapping.pins))
