# SPDX-License-Identifier: Apache-2.0
"""The backends by which an address space serves its groups, and the account of pinned memory.

State: under the lock of the :class:`devmodel.iommu.space.IoAddressSpace` they belong to;
:class:`LockedMemory` is shared by all address spaces of a lab and has a lock of its own, taken last. Nothing
here asks a client anything under a lock. Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU".
"""

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import ClassVar

from devmodel.client import Client
from devmodel.iommu.api import PAGE_SIZE, PGSIZES, IommuGroup
from devmodel.iommu.dirty import DirtyPages
from devmodel.iommu.mappings import Mapping, Mappings


class MemoryLimit(OSError):
    """ENOMEM: a process may not lock as many pages. ``room`` is how many more it may."""

    def __init__(self, client: Client, total: int, room: int) -> None:
        super().__init__(errno.ENOMEM, f"process {client.tgid} may not lock {total} pages of memory")
        self.room = max(room, 0)


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

    def charge(self, client: Client, pages: int) -> None:
        """Count ``pages`` more for the process. Raises :class:`MemoryLimit`, with none counted.

        It asks the process for its limit, which may take as long as the process likes. So the caller holds no
        lock, and what it is about to pin is counted before it asks.
        """
        if not pages:
            return
        total = self._add(client, pages)
        try:
            if _exceeds(client, total * PAGE_SIZE) and not client.may_lock_any():
                limit = (client.memlock_limit() - client.locked()) // PAGE_SIZE
                raise MemoryLimit(client, total, limit - (total - pages))
        except BaseException:
            self._add(client, -pages)
            raise

    def discharge(self, client: Client, pages: int) -> None:
        """Undo :meth:`charge`. Any thread, under any lock."""
        if pages:
            self._add(client, -pages)

    def reduce(self, mapping: Mapping, pages: int) -> None:
        """Charge no more than ``pages`` for ``mapping`` from now on. Under the lock of the mapping."""
        if pages < mapping.charged:
            self._add(mapping.client, pages - mapping.charged)
            mapping.charged = pages

    def _add(self, client: Client, pages: int) -> int:
        with self._lock:
            total = self._pages.get(client.identity, 0) + pages
            if total:
                self._pages[client.identity] = total
            else:
                self._pages.pop(client.identity, None)
            return total


def _exceeds(client: Client, size: int) -> bool:
    limit = client.memlock_limit()
    return size > limit or size + client.locked() > limit


class Backend(ABC):
    """Serves the groups that it accepts. ``iova_ranges`` are (first, last), () for no limit."""

    __slots__ = ("groups", "locked", "ready")
    emulated: ClassVar[bool]
    strict: ClassVar[bool] = True
    """Whether it refuses iovas that it cannot reach, and holds the memory of each mapping
    (:mod:`devmodel.iommu.holding`)."""
    pgsizes: ClassVar[int] = PGSIZES
    iova_ranges: ClassVar[tuple[tuple[int, int], ...]] = ()

    def __init__(self, locked: LockedMemory) -> None:
        self.groups: dict[int, IommuGroup] = {}
        self.locked = locked
        self.ready = not self.strict
        """Whether it holds the memory of all mappings that it has to hold."""

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
    def unmap(self, mapping: Mapping) -> None:
        """``mapping`` is removed, or this backend stops."""

    def check(self, mapping: Mapping) -> None:
        """Raises ``OSError(EINVAL)`` for a mapping that its devices cannot reach."""
        if not self.valid(mapping.iova, mapping.end):
            raise OSError(errno.EINVAL, f"iova {mapping.iova:#x} is reserved or beyond what the IOMMU can")

    def stop(self, mappings: Mappings) -> None:
        """The last group is detached, while other backends still serve the mappings."""
        for mapping in mappings:
            self.unmap(mapping)


class PinningBackend(Backend):
    """For a physical function, which does DMA of its own: every mapping is pinned as long as it is there.

    Page sizes and addresses are those of an x86 IOMMU: interrupts take the megabyte from 0xfee00000. Its
    devices write by themselves, which nobody sees: so when they leave, all of the memory is dirty.
    """

    __slots__ = ()
    emulated = False
    pgsizes = 1 << 12 | 1 << 21 | 1 << 30
    iova_ranges: ClassVar[tuple[tuple[int, int], ...]] = ((0, 0xFEDFFFFF), (0xFEF00000, 2**48 - 1))

    def stop(self, mappings: Mappings) -> None:
        if mappings.tracked and self.ready:
            for mapping in mappings:
                mapping.dirty = DirtyPages(mapping.page_count, whole=True)
        super().stop(mappings)

    def unmap(self, mapping: Mapping) -> None:
        mapping.pages = None
        self.locked.reduce(mapping, len(mapping.pins or ()))
