# SPDX-License-Identifier: Apache-2.0
"""How the memory of clients is pinned: whole mappings for physical functions, pages for mediated devices.

A client can make each answer take as long as it likes. So nothing here asks it under a lock: one hold of the
lock of the address space looks, the client is asked without it, and another hold commits, or finds that the
mapping has changed or gone meanwhile. State: none. Called by threads that may wait, never by the device lane.
Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU"; Documentation/driver-api/vfio-mediated-device.rst
(vfio_pin_pages).
"""

import errno
from collections.abc import Callable, Sequence
from functools import partial

from devmodel.client import Client, Pages
from devmodel.iommu.accounts import LockedMemory, unpinned_pages
from devmodel.iommu.api import MAX_PIN_PAGES, PAGE_SIZE, IommuGroup, Prot
from devmodel.iommu.attachments import Attachments
from devmodel.iommu.backend import Backend
from devmodel.iommu.heldpages import Ranges
from devmodel.iommu.inflight import Inflight
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.pins import Wanted, charge_and_pin, count_pins, give_back, hold
from devmodel.iommu.segments import Segment

_WRITE = int(Prot.WRITE)


class Holding:
    """Pins the memory behind one address space. The arguments are those of that space; ``may_pin`` allows
    mediated devices to pin."""

    __slots__ = ("_attachments", "_inflight", "_lock", "_locked", "_mappings", "_may_pin")

    def __init__(
        self, inflight: Inflight, attachments: Attachments, locked: LockedMemory, may_pin: bool
    ) -> None:
        self._inflight, self._lock, self._mappings = inflight, inflight.lock, inflight.mappings
        self._attachments, self._locked, self._may_pin = attachments, locked, may_pin

    # ---- whole mappings, for a physical function ----

    def finish(self, mappings: Sequence[Mapping], allows: int) -> None:
        """Pin the memory of mappings that are being made, and let devices use all of them as ``allows`` says.

        A mapping that an unmap has removed meanwhile has been made and removed: that is no error. Raises
        ``OSError``, with the mappings removed: ENOMEM (RLIMIT_MEMLOCK), EFAULT (no such memory), ESRCH.
        """
        asked: list[tuple[Mapping, Client, Ranges, Pages]] = []
        try:
            for mapping in mappings:
                client, ranges = mapping.client, unpinned_pages(mapping)
                pages = self._ask(mapping, client, mapping.vaddr, ranges, allows)
                asked.append((mapping, client, ranges, pages))
        except BaseException:
            for _, client, ranges, _ in asked:
                self._locked.discharge(client, ranges)
            with self._lock:
                live = [mapping for mapping in mappings if mapping.live]
                for mapping in live:
                    self._mappings.remove(mapping)
            if live:
                raise
            return
        left = []
        with self._lock:
            strict = bool(self._attachments.strict)
            for mapping, client, ranges, pages in asked:
                if mapping.live and strict:
                    mapping.pages, mapping.charged = pages, mapping.page_count
                else:
                    left.append((client, ranges))
                mapping.allows = allows
        for client, ranges in left:
            self._locked.discharge(client, ranges)

    def take_over(self, backend: Backend, group: IommuGroup) -> None:
        """Pin the memory of all mappings for ``backend``, to which ``group`` is attached. New mappings are
        pinned by the threads that make them.

        Raises ``OSError`` as :meth:`finish`, with the group not attached.
        """
        with self._lock:
            known = [mapping for mapping in self._mappings if mapping.allows]
        try:
            for mapping in known:
                done = False
                while not done:
                    done = self._take_one(mapping, partial(self._attachments.serves, backend, group))
        except BaseException:
            with self._lock:
                self._attachments.remove(group, self._mappings)
            raise
        with self._lock:
            backend.ready = True

    def _take_one(self, mapping: Mapping, wanted: Callable[[], bool]) -> bool:
        """Pin the memory of ``mapping`` as long as it is ``wanted``. False when it has changed meanwhile, and
        has to be looked at again."""
        with self._lock:
            seen = self._look(mapping, wanted)
        if seen is None:
            return True
        client, vaddr, more = seen
        try:
            pages = self._ask(mapping, client, vaddr, more, mapping.allows)
        except OSError:
            with self._lock:
                if self._look(mapping, wanted) == seen:
                    raise
            return False
        with self._lock:
            same = self._look(mapping, wanted) == seen
            if same:
                mapping.pages, mapping.charged = pages, mapping.page_count
        if not same:
            self._locked.discharge(client, more)
        return same

    @staticmethod
    def _look(mapping: Mapping, wanted: Callable[[], bool]) -> tuple[Client, int, Ranges] | None:
        if not mapping.live or mapping.pages is not None or not wanted():
            return None
        return mapping.client, mapping.vaddr, unpinned_pages(mapping)

    def _ask(self, mapping: Mapping, client: Client, vaddr: int, ranges: Ranges, allows: int) -> Pages:
        """Charge these pages and pin the mapping's memory. Without the lock."""
        return charge_and_pin(self._locked, client, ranges, vaddr, mapping.size, bool(allows & _WRITE))

    # ---- pages, for mediated devices: DMA threads ----

    def pin(self, iova: int, count: int, prot: Prot) -> tuple[Segment, ...]:
        """Add one pin to each of ``count`` pages from ``iova``. Returns the memory of these pages. Raises
        ``OSError`` as :meth:`DmaSpace.pin_pages`, with nothing changed."""
        if count > MAX_PIN_PAGES:
            raise OSError(errno.E2BIG, f"{count} pages in one pin")
        if count < 1 or iova % PAGE_SIZE:
            raise OSError(errno.EINVAL, f"{count} pages at iova {iova:#x}")
        if not self._may_pin:
            raise OSError(errno.EACCES, "pages can be pinned in a type1v2 IOMMU only")
        segments = None
        while segments is None:
            segments = self._pin(iova, count, prot)
        return segments

    def _pin(self, iova: int, count: int, prot: Prot) -> tuple[Segment, ...] | None:
        """None when something has changed meanwhile, and has to be looked at again."""
        with self._lock:
            wanted = self._wanted(iova, count, prot)
        try:
            segments = hold(wanted, prot, self._locked)
        except OSError as error:
            with self._lock:
                if self._wanted(iova, count, prot) != wanted:
                    return None
                mediated = self._attachments.mediated
            if error.errno != errno.ESRCH or mediated is None:
                raise
            raise OSError(mediated.process_ended, error.strerror) from error
        counted = False
        try:
            with self._lock:
                counted = self._wanted(iova, count, prot) == wanted
                if counted:
                    count_pins(wanted, self._mappings.tracked)
        finally:
            if not counted:
                give_back(wanted, self._locked)
        return segments if counted else None

    def _wanted(self, iova: int, count: int, prot: Prot) -> list[Wanted]:
        mediated = self._attachments.mediated
        if mediated is None or self._inflight.is_draining(((iova, iova + count * PAGE_SIZE),)):
            raise OSError(errno.EINVAL, "no mediated device is attached, or the pages are being unmapped")
        return mediated.wanted(self._mappings, iova, count, prot)
