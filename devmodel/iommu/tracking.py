# SPDX-License-Identifier: Apache-2.0
"""Tracking of dirty pages: which pages of a container its devices wrote.

State: under ``Dma.lock``. Called from the device lane (and its worker).
Source: <linux/vfio.h> (VFIO_IOMMU_DIRTY_PAGES); the order of checks is vfio_iommu_type1's.
"""

import errno

from devmodel.iommu.api import MAX_BITMAP_PAGES, PAGE_SIZE, ClientBitmap, check_range
from devmodel.iommu.attached import Attached
from devmodel.iommu.dirty import DirtyPages, check_bitmap
from devmodel.iommu.mappings import Mapping


class Tracked(Attached):
    """An address space that can say what was written."""

    __slots__ = ()

    def start_tracking(self) -> None:
        """Track dirty pages; no error when it is so already. ``OSError``: EACCES on a type1 that is not v2,
        EINVAL when a mapping is too large."""
        self._check_v2()
        with self.lock:
            if any(mapping.page_count > MAX_BITMAP_PAGES for mapping in self.mappings):
                raise OSError(errno.EINVAL, "a mapping is too large to be tracked")
            self.tracking = True

    def stop_tracking(self) -> None:
        """Forget dirty pages and track no more. ``OSError(EACCES)`` on a type1 that is not v2."""
        self._check_v2()
        with self.lock:
            self.tracking = False
            for mapping in self.mappings:
                mapping.dirty = None

    def report_dirty(self, iova: int, size: int, bitmap: ClientBitmap) -> None:
        """Write which pages of the range a device wrote since the last report to ``bitmap``.

        The range may have holes but no mapping in part. ``OSError``: EACCES on a type1 that is not v2,
        EOVERFLOW, EINVAL (range, bitmap, not tracking), EFAULT (the bitmap's memory).
        """
        self._check_v2()
        if iova + size > 2**64:
            raise OSError(errno.EOVERFLOW, "the range wraps around the end of the address space")
        check_bitmap(bitmap, size, PAGE_SIZE)
        check_range(size, iova)
        with self.lock:
            if not self.tracking:
                raise OSError(errno.EINVAL, "dirty pages are not tracked")
            self._check_whole(iova, iova + size)
            for mapping in self.mappings.within(iova, iova + size):
                report(mapping, iova, bitmap)
                mapping.dirty = None

    def _check_whole(self, iova: int, end: int) -> None:
        for edge in (iova, end):
            at = self.mappings.covering(edge)
            if at is not None and at.iova != edge:
                raise OSError(errno.EINVAL, f"iova {edge:#x} is inside a mapping")

    def _check_v2(self) -> None:
        if not self.v2:
            raise OSError(errno.EACCES, "only type1v2 tracks dirty pages")


def report(mapping: Mapping, iova: int, bitmap: ClientBitmap) -> None:
    """Write the dirty pages of ``mapping`` to the bitmap of a range that begins at ``iova``."""
    dirty = mapping.dirty or DirtyPages(mapping.page_count)
    dirty.copy_to(bitmap, (mapping.iova - iova) // PAGE_SIZE)
