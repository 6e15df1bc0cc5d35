# SPDX-License-Identifier: Apache-2.0
"""Tracking of dirty pages: the pages of an address space that its devices wrote, reported to clients'
bitmaps.

A mediated device writes through its driver, which is seen, or to pages that it holds pinned. These are
reported each time. A physical function writes by itself, so each report has all of the memory that is pinned
for it.

State: dirty pages belong to their mapping, under ``IoAddressSpace.lock``. A bitmap is written without that
lock, one at a time, under ``DirtyTracking.lock``, which is taken before the other one. Nothing else waits for
``DirtyTracking.lock``. A report waits for the client's memory, so a thread that may wait makes it, never
the lane. Source: <linux/vfio.h> (VFIO_IOMMU_DIRTY_PAGES, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP); the pages
that are unmapped or clean after an error are those of vfio_iommu_type1.
"""

import errno
import threading
from collections import deque

from devmodel.iommu.api import MAX_BITMAP_PAGES, PAGE_SIZE, ClientBitmap
from devmodel.iommu.dirty import DirtyPages, report
from devmodel.iommu.inflight import Span
from devmodel.iommu.mappings import Mapping, extent, runs
from devmodel.iommu.space import Choice, IoAddressSpace


class DirtyTracking:
    """The dirty pages of one address space, for an API that reports them."""

    __slots__ = ("_space", "lock")

    def __init__(self, space: IoAddressSpace) -> None:
        self._space = space
        self.lock = threading.Lock()

    def start(self) -> None:
        """Track from now on. It is no error if it is on already. Raises ``OSError(EINVAL)`` when a mapping is
        too large. Device lane too."""
        space = self._space
        with space.lock:
            if any(mapping.page_count > MAX_BITMAP_PAGES for mapping in space.mappings):
                raise OSError(errno.EINVAL, "a mapping is too large to be tracked")
            if not space.mappings.tracked:
                space.mappings.tracked = True
                for mapping in space.mappings:
                    mapping.hold_dirty()

    def stop(self) -> None:
        """Forget dirty pages and stop tracking. Device lane too."""
        space = self._space
        with space.lock:
            space.mappings.tracked = False
            for mapping in space.mappings:
                mapping.dirty = None

    def report(self, iova: int, choose: Choice, bitmap: ClientBitmap) -> None:
        """Report the dirty pages of the mappings from ``choose``. Bit 0 is the page at ``iova``.

        Reported pages are clean from then on, unless a device holds them. Pages that devices write later,
        also while the bitmap is being written, are dirty for the next report. If the bitmap raises
        ``OSError(EFAULT)`` for a mapping, the mappings before are reported and clean. That mapping and the
        later ones are as dirty as before.
        """
        space = self._space
        with self.lock:
            with space.lock:
                unseen = space.attachments.writes_unseen
                taken = deque((mapping, mapping.take_dirty(unseen)) for mapping in choose())
            try:
                while taken:
                    _report(*taken[0], iova, bitmap)
                    taken.popleft()
            finally:
                with space.lock:
                    for mapping, dirty in taken if space.mappings.tracked else ():
                        mapping.still_dirty(dirty)

    def unmap(self, span: Span, choose: Choice, bitmap: ClientBitmap) -> int:
        """Unmap as :meth:`IoAddressSpace.unmap`, and report the dirty pages of the removed mappings. Bit 0 is
        the first page of ``span``.

        A mapping is removed only after its pages are reported. If the bitmap raises ``OSError(EFAULT)`` for a
        mapping, the mappings before are unmapped. That mapping and the later ones stay, with their dirty
        pages.
        """
        space = self._space
        with self.lock:
            with space.lock:
                found = space.unpinned(span, choose, may_wait=True)
                whole = extent(found, span)
                space.inflight.drain(whole)
                # From here to the end no DMA begins there, and no other report: what is dirty stays as it is.
                leaving = runs(found)
                space.inflight.draining.extend(leaving)
                unseen = space.attachments.writes_unseen
                taken = [(mapping, mapping.take_dirty(unseen)) for mapping in found]
            reported: list[Mapping] = []
            unmapped = 0
            try:
                for mapping, dirty in taken:
                    _report(mapping, dirty, span[0], bitmap)
                    reported.append(mapping)
            finally:
                with space.lock:
                    for mapping, dirty in taken[len(reported) :] if space.mappings.tracked else ():
                        mapping.still_dirty(dirty)
                    for run in leaving:
                        space.inflight.draining.remove(run)
                    unmapped = space.remove(reported)
            return unmapped


def _report(mapping: Mapping, dirty: DirtyPages | None, iova: int, bitmap: ClientBitmap) -> None:
    report(dirty, mapping.page_count, (mapping.iova - iova) // PAGE_SIZE, bitmap)
