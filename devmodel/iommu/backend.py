# SPDX-License-Identifier: Apache-2.0
"""The backends by which an address space serves its groups, and the account of pinned memory.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace` they belong to;
:class:`LockedMemory` is shared by all address spaces of a lab and has a lock of its own, taken last. Source:
<linux/vfio.h>, "API for Type1 VFIO IOMMU".
"""

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import ClassVar

from devmodel.client import Client
from devmodel.iommu.api import PAGE_SIZE, PGSIZES, IommuGroup, Prot
from devmodel.iommu.mappings import Mapping, Mappings


class LockedMemory:
    """The pinned pages of each process, counted over all address spaces, and limited by its
    RLIMIT_MEMLOCK."""

    __slots__ = ("_lock", "_pages")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[Hashable, int] = {}

    def of(self, client: Client) -> int:
        """Pages of the process that are pinned now. Any thread."""
        with self._lock:
            return self._pages.get(client.identity, 0)

    def settle(self, mapping: Mapping, pages: int) -> None:
        """Set the pages that are charged for ``mapping``. Over the limit, raises ``OSError(ENOMEM)`` with
        nothing changed."""
        if pages != mapping.charged:
            self._add(mapping.client, pages - mapping.charged)
            mapping.charged = pages

    def move(self, mapping: Mapping, client: Client) -> None:
        """Charge the pages of ``mapping`` to another process from now on. Raises ``OSError(ENOMEM)`` over its
        limit."""
        if mapping.charged and client.identity != mapping.client.identity:
            self._add(client, mapping.charged)
            self._add(mapping.client, -mapping.charged)

    def _add(self, client: Client, pages: int) -> None:
        with self._lock:
            total = self._pages.get(client.identity, 0) + pages
            over = pages > 0 and _exceeds(client, total * PAGE_SIZE)
            if over and not client.may_lock_any():
                raise OSError(errno.ENOMEM, f"process {client.tgid} may not lock {total} pages of memory")
            if total:
                self._pages[client.identity] = total
            else:
                self._pages.pop(client.identity, None)


def _exceeds(client: Client, size: int) -> bool:
    limit = client.memlock_limit()
    return size > limit or size + client.locked() > limit


class Backend(ABC):
    """Serves the groups that it accepts. ``iova_ranges`` are (first, last), () for no limit."""

    __slots__ = ("groups", "locked")
    emulated: ClassVar[bool]
    strict: ClassVar[bool] = True
    """Whether it may refuse a mapping, and must be told of each one that is made and removed."""
    pgsizes: ClassVar[int] = PGSIZES
    iova_ranges: ClassVar[tuple[tuple[int, int], ...]] = ()

    def __init__(self, locked: LockedMemory) -> None:
        self.groups: dict[int, IommuGroup] = {}
        self.locked = locked

    @classmethod
    def accepts(cls, group: IommuGroup) -> bool:
        """Whether it can serve the devices of ``group``."""
        return group.emulated is cls.emulated

    @classmethod
    def valid(cls, iova: int, end: int) -> bool:
        """Whether its devices can use all addresses from ``iova`` to before ``end``."""
        ranges = cls.iova_ranges
        return not ranges or any(first <= iova and end - 1 <= last for first, last in ranges)

    @abstractmethod
    def map(self, mapping: Mapping) -> None:
        """``mapping`` is new. Raises ``OSError`` to refuse it, with nothing changed."""

    @abstractmethod
    def unmap(self, mapping: Mapping) -> None:
        """``mapping`` is removed, or this backend stops."""

    def start(self, mappings: Mappings) -> None:
        """The first group is attached: take over all mappings. Raises ``OSError`` as :meth:`map`, and then
        has taken over none."""
        done: list[Mapping] = []
        try:
            for mapping in mappings:
                if not self.valid(mapping.iova, mapping.end):
                    raise OSError(errno.EINVAL, f"iova {mapping.iova:#x} cannot be mapped for this group")
                self.map(mapping)
                done.append(mapping)
        except OSError:
            for mapping in done:
                self.unmap(mapping)
            raise

    def stop(self, mappings: Mappings) -> None:
        """The last group is detached, while other backends still serve the mappings."""
        for mapping in mappings:
            self.unmap(mapping)


class PinningBackend(Backend):
    """For a physical function, which does DMA of its own: every mapping is pinned when it is made.

    Page sizes and addresses are those of an x86 IOMMU: interrupts take the megabyte from 0xfee00000.
    """

    __slots__ = ()
    emulated = False
    pgsizes = 1 << 12 | 1 << 21 | 1 << 30
    iova_ranges = ((0, 0xFEDFFFFF), (0xFEF00000, 2**48 - 1))

    def map(self, mapping: Mapping) -> None:
        before = mapping.charged
        self.locked.settle(mapping, mapping.page_count)
        try:
            mapping.pages = mapping.client.pin(mapping.vaddr, mapping.size, bool(mapping.prot & Prot.WRITE))
        except OSError:
            self.locked.settle(mapping, before)
            raise

    def unmap(self, mapping: Mapping) -> None:
        mapping.pages = None
        self.locked.settle(mapping, len(mapping.pins or ()))
