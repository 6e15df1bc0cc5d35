# SPDX-License-Identifier: Apache-2.0
"""The backend of groups of mediated devices. It counts the pages that their drivers pin.

State: under the lock of the address space. A client may take as long as it likes to let its memory be pinned,
so a pin is looked at under the lock, held and charged without it, and counted under it again. Source:
Documentation/driver-api/vfio-mediated-device.rst (vfio_pin_pages, vfio_unpin_pages); the order of checks is
vfio_iommu_type1's.
"""

import errno
from typing import ClassVar, NamedTuple

from devmodel.client import Client, Pages
from devmodel.iommu.accounts import LockedMemory, MemoryLimit, merged, number_of
from devmodel.iommu.api import MAX_PIN_PAGES, PAGE_SIZE, DmaUser, Prot
from devmodel.iommu.backend import Backend
from devmodel.iommu.heldpages import Ranges
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.segments import Segment, segments_of
from devmodel.iommu.sharing import SharedMemory, SharedPages

NOTIFY_LIMIT = 10
"""How often a device is asked to unpin before its model is reported as faulty."""


class Wanted(NamedTuple):
    """Memory to pin: at ``vaddr`` of ``client``, of which the pages ``new`` are to be charged."""

    segment: Segment
    client: Client
    vaddr: int
    new: Ranges


class MediatedBackend(Backend):
    """For mediated devices: a new mapping is not pinned, and pages are pinned when a driver asks for them.

    ``users`` has the devices that can be told of an unmap.
    """

    __slots__ = ("users",)
    emulated = True
    strict = False
    not_mapped: ClassVar[int] = errno.EINVAL
    """The errno of a pin of pages that are not all mapped."""
    process_ended: ClassVar[int] = errno.ENODEV
    """The errno of a pin of memory whose process has ended."""

    def __init__(self, locked: LockedMemory) -> None:
        super().__init__(locked)
        self.users: list[DmaUser] = []

    def unmap(self, mapping: Mapping) -> None:
        """Nothing to do: the unmap has made sure that no page is pinned."""

    def wanted(self, mappings: Mappings, iova: int, count: int, prot: Prot) -> list[Wanted]:
        """What a pin of ``count`` pages from ``iova`` takes.

        Raises ``OSError``: EINVAL (no device that can be told of an unmap), for the first page that cannot be
        pinned :attr:`not_mapped` or EPERM (protection).
        """
        if not self.users:
            raise OSError(errno.EINVAL, "no device that can be told of an unmap")
        segments = segments_of(mappings, iova, count * PAGE_SIZE, holes=True) or []
        position = iova
        for segment in segments:
            if segment.mapping.iova + segment.offset > position or not segment.mapping.allows:
                break
            if prot & ~segment.mapping.prot:
                raise OSError(errno.EPERM, f"iova {position:#x} is not mapped for {prot.name}")
            position += segment.size
        if position < iova + count * PAGE_SIZE:
            raise OSError(self.not_mapped, f"iova {position:#x} is not mapped")
        return [_wanted(segment, self.memory_of(segment.mapping)) for segment in segments]

    def memory_of(self, mapping: Mapping) -> Client:
        """Where pages of ``mapping`` are pinned. Under the lock."""
        return mapping.client

    def unpin(self, mappings: Mappings, iova: int, count: int) -> None:
        """Remove one pin from each of ``count`` pages from ``iova``, at most as many as one call may unpin.
        Pages that are not pinned do not change."""
        size = min(count, MAX_PIN_PAGES) * PAGE_SIZE
        for segment in segments_of(mappings, iova, size, holes=True) or ():
            for page in _pages(segment):
                self._uncount(segment.mapping, page)

    def _uncount(self, mapping: Mapping, page: int) -> None:
        count = (mapping.pins or {}).get(page, 0)
        if mapping.pins is None or not count:
            return
        if count > 1:
            mapping.pins[page] = count - 1
            return
        del mapping.pins[page]
        if mapping.pages is None:
            page += mapping.vaddr // PAGE_SIZE
            self.locked.discharge(mapping.client, ((page, page + 1),))
            mapping.charged -= 1


def count_pins(wanted: list[Wanted], tracked: bool) -> None:
    """Add one pin to each page of ``wanted``, whose new pages have been charged. Pinned pages are dirty if
    dirty pages are ``tracked``. Under the lock."""
    for segment, _, _, new in wanted:
        mapping = segment.mapping
        if mapping.pins is None:
            mapping.pins = {}
        for page in _pages(segment):
            mapping.pins[page] = mapping.pins.get(page, 0) + 1
        mapping.charged += number_of(new)
        if tracked:
            mapping.written(segment.offset, segment.size)


def hold(wanted: list[Wanted], prot: Prot, locked: LockedMemory) -> tuple[Segment, ...]:
    """Charge and pin the memory of ``wanted``, one after the other. Without the lock.

    Raises ``OSError``, with nothing charged: EFAULT (no such memory), ENOMEM (RLIMIT_MEMLOCK), ESRCH.
    """
    held: list[Segment] = []
    try:
        for one in wanted:
            held.append(_held(one, prot, locked))
    except BaseException:
        give_back(wanted[: len(held)], locked)
        raise
    return tuple(held)


def give_back(wanted: list[Wanted], locked: LockedMemory) -> None:
    """Undo the charges of :func:`hold`. Without the lock."""
    for one in wanted:
        locked.discharge(one.client, one.new)


def _pages(segment: Segment) -> range:
    first = segment.offset // PAGE_SIZE
    return range(first, first + segment.size // PAGE_SIZE)


def _wanted(segment: Segment, client: Client) -> Wanted:
    mapping = segment.mapping
    pins = mapping.pins or {}
    # the pages of a mapping that a pinning backend holds are charged already
    base = mapping.vaddr // PAGE_SIZE
    new = merged(base + page for page in _pages(segment) if page not in pins) if segment.pages is None else ()
    return Wanted(segment, client, mapping.vaddr + segment.offset, new)


def charge_and_pin(
    locked: LockedMemory, client: Client, ranges: Ranges, vaddr: int, size: int, write: bool
) -> Pages:
    """Charge the pages ``ranges`` for ``client``, and pin its memory at ``vaddr``. Without a lock. Raises
    ``OSError`` as :func:`hold`, with nothing charged."""
    try:
        locked.charge(client, ranges)
    except MemoryLimit as error:
        # the kernel pins page by page: memory that ends before the limit does is EFAULT
        client.pin(vaddr, min(size, (error.room + 1) * PAGE_SIZE), write)
        raise
    try:
        return shared_by_all(client, vaddr, client.pin(vaddr, size, write))
    except BaseException:
        locked.discharge(client, ranges)
        raise


def shared_by_all(client: Client, vaddr: int, pages: Pages) -> Pages:
    """The pages to use of those that were pinned and charged. Of shared memory they are the same for all."""
    if isinstance(client, SharedMemory) and isinstance(pages, SharedPages):
        return client.adopt(vaddr, pages)
    return pages


def _held(wanted: Wanted, prot: Prot, locked: LockedMemory) -> Segment:
    """The segment with pages that are held for it, unless a pinning backend holds those of the mapping."""
    segment = wanted.segment
    if segment.pages is not None:
        return segment
    client, vaddr = wanted.client, wanted.vaddr
    pages = client.pin(vaddr, segment.size, bool(prot & Prot.WRITE))
    locked.charge(client, wanted.new)
    pages = shared_by_all(client, vaddr, pages)
    return Segment(segment.mapping, segment.offset, segment.size, pages, 0)
