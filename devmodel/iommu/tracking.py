# SPDX-License-Identifier: Apache-2.0
"""Tracking of dirty pages: which pages of an address space its devices wrote, reported to clients' bitmaps.

State: dirty pages are their mapping's, under ``IoAddressSpace.lock``. A bitmap is written without that lock,
one at a time, under ``DirtyTracking.lock``: it comes before the other one, and nobody else waits for it. So
only those who may wait as long as the client's memory does call here: the device lane's worker, never the
lane. Source: <linux/vfio.h> (VFIO_IOMMU_DIRTY_PAGES, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP); what is unmapped
and clean after an error is as with vfio_iommu_type1.
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
        """Track from now on; no error when it is so already. ``OSError(EINVAL)``: a mapping is too large.
        Device lane too."""
        space = self._space
        with space.lock:
            if any(mapping.page_count > MAX_BITMAP_PAGES for mapping in space.mappings):
                raise OSError(errno.EINVAL, "a mapping is too large to be tracked")
            space.mappings.tracked = True

    def stop(self) -> None:
        """Forget dirty pages and track no more. Device lane too."""
        space = self._space
        with space.lock:
            space.mappings.tracked = False
            for mapping in space.mappings:
                mapping.dirty = None

    def report(self, iova: int, choose: Choice, bitmap: ClientBitmap) -> None:
        """Report the dirty pages of the mappings that ``choose`` names; bit 0 is the page at ``iova``.

        Reported pages are clean; what devices write from then on, also while the bitmap is being written, is
        dirty for the next report. Where the bitmap raises ``OSError(EFAULT)``, the mappings before are
        reported and clean; that one, and those behind, are as dirty as they were.
        """
        space = self._space
        with self.lock:
            with space.lock:
                taken = deque((mapping, mapping.dirty) for mapping in choose())
                for mapping, _ in taken:
                    mapping.dirty = None
            try:
                while taken:
                    _report(*taken[0], iova, bitmap)
                    taken.popleft()
            finally:
                with space.lock:
                    for mapping, dirty in taken if space.mappings.tracked else ():
                        mapping.still_dirty(dirty)

    def unmap(self, span: Span, choose: Choice, bitmap: ClientBitmap) -> int:
        """As :meth:`IoAddressSpace.unmap`, and report the dirty pages of what goes; bit 0 is the page that
        ``span`` begins with.

        A mapping goes only when its pages are reported. Where the bitmap raises ``OSError(EFAULT)``, the
        mappings before are unmapped; that one, and those behind, stay as they were, dirty pages included.
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
            reported: list[Mapping] = []
            unmapped = 0
            try:
                for mapping in found:
                    _report(mapping, mapping.dirty, span[0], bitmap)
                    reported.append(mapping)
            finally:
                with space.lock:
                    for run in leaving:
                        space.inflight.draining.remove(run)
                    unmapped = space.remove(reported)
            return unmapped


def _report(mapping: Mapping, dirty: DirtyPages | None, iova: int, bitmap: ClientBitmap) -> None:
    report(dirty, mapping.page_count, (mapping.iova - iova) // PAGE_SIZE, bitmap)
