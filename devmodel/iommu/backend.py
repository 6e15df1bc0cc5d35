# SPDX-License-Identifier: Apache-2.0
"""What an address space does for the groups attached to it: backends, and the account of pinned memory.

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
    """How many pages of each process are pinned, in all address spaces together, against its
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
        """Let ``mapping`` account for so many pages. ``OSError(ENOMEM)`` over the limit, nothing changed."""
        if pages != mapping.charged:
            self._add(mapping.client, pages - mapping.charged)
            mapping.charged = pages

    def move(self, mapping: Mapping, client: Client) -> None:
        """Another process accounts for ``mapping`` from now on. ``OSError(ENOMEM)`` over its limit."""
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
    """What serves the groups that it accepts. ``iova_ranges`` are (first, last), () for any."""

    __slots__ = ("groups", "locked")
    emulated: ClassVar[bool]
    strict: ClassVar[bool] = True
    """Whether mappings matter to it: it may refuse one, and has to hear of each that comes and goes."""
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
        """``mapping`` has come. ``OSError`` refuses it, and then nothing has changed."""

    @abstractmethod
    def unmap(self, mapping: Mapping) -> None:
        """``mapping`` goes, or this backend does."""

    def start(self, mappings: Mappings) -> None:
        """The first group comes: take over what is mapped, all or nothing. ``OSError`` as :meth:`map`."""
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
        """The last group has gone, and other backends still serve the mappings."""
        for mapping in mappings:
            self.unmap(mapping)


class PinningBackend(Backend):
    """For a physical function, which reaches memory by itself: every mapping is pinned as it is made.

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
