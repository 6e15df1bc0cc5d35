# SPDX-License-Identifier: Apache-2.0
"""type1: the IOMMU API of containers. It applies the kernel's rules, and calls an address space.

Version 1 and version 2 differ in the mappings that an unmap may remove. All that APIs have in common is in
the address space. State: none besides the space. Called from the device lane and threads that may wait,
never by devices. Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU"; the order of checks is
vfio_iommu_type1's.
"""

import errno
from functools import partial
from typing import Protocol

from devmodel.client import Client
from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import (
    ADDRESSES,
    DMA_ENTRY_LIMIT,
    PAGE_SIZE,
    ClientBitmap,
    Extension,
    IommuGroup,
    MustWait,
    check_range,
)
from devmodel.iommu.dirty import check_bitmap
from devmodel.iommu.driver import Iommu
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.space import IoAddressSpace
from devmodel.iommu.tracking import DirtyTracking
from devmodel.iommu.vaddrs import Vaddrs

_EXTENSIONS = frozenset({Extension.TYPE1, Extension.TYPE1V2, Extension.DMA_CC, Extension.UNMAP_ALL})


class _Map(Protocol):
    def __call__(
        self, client: Client, iova: int, vaddr: int, size: int, prot: int, may_wait: bool = True
    ) -> None: ...


class Type1(Iommu):
    """The API of one container. It fills ``space``, which devices use. ``v2`` is the version."""

    __slots__ = ("_dirty", "_vaddrs", "map", "space", "v2")
    space: IoAddressSpace
    map: _Map
    """:meth:`IoAddressSpace.map` itself. Its errnos are type1's, and a method here would cost a call."""

    def __init__(
        self, v2: bool = True, limit: int = DMA_ENTRY_LIMIT, locked: LockedMemory | None = None
    ) -> None:
        """``v2`` chooses TYPE1v2's unmap, which never splits a mapping and never unmaps more than the range.
        ``limit`` is the most mappings. ``locked`` accounts for pinned pages together with other
        containers."""
        self.v2 = v2
        self.space = IoAddressSpace(locked, limit, may_pin=v2)
        self.map = self.space.map
        self._dirty = DirtyTracking(self.space)
        self._vaddrs = Vaddrs(self.space)

    @property
    def dma_avail(self) -> int:
        """The number of mappings that can still be made."""
        return self.space.limit - len(self.space.mappings)

    @property
    def pgsizes(self) -> int:
        """Bitmap of the supported page sizes."""
        return self.space.attachments.pgsizes

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Valid ranges as (first, last) iova. () means no limit: all groups are of mediated devices."""
        return self.space.attachments.iova_ranges

    def check_extension(self, extension: int) -> int:
        if extension == Extension.UPDATE_VADDR:
            return int(self.space.mediated is None)
        return int(extension in _EXTENSIONS)

    def attach(self, group: IommuGroup) -> None:
        self.space.attach(group)

    def detach(self, group: IommuGroup) -> None:
        self.space.detach(group)

    def close(self) -> None:
        self.space.clear()

    def unmap(
        self,
        iova: int,
        size: int,
        all: bool = False,
        bitmap: ClientBitmap | None = None,
        may_wait: bool = True,
    ) -> int:
        """Remove the mappings of a range, or all of them (then ``iova`` and ``size`` are 0). Returns the
        bytes unmapped, 0 when the range has no mappings.

        v2 raises ``OSError(EINVAL)`` when an edge of the range would split a mapping. v1 removes the whole
        of each mapping that starts in the range, and nothing when the range starts inside one. Otherwise
        raises EINVAL and EOVERFLOW as :meth:`map`, and EBUSY when a DMA in the range does not end. With
        ``bitmap`` the dirty pages are reported there; EINVAL unless they are tracked. The device lane calls
        with ``may_wait`` False: raises :class:`MustWait`, with nothing unmapped, when the call has to wait
        for a DMA, another unmap or the bitmap's memory.
        """
        if bitmap is not None:
            return self._unmap_reporting(iova, size, all, bitmap, may_wait)
        if not all and self.space.unmap_exact(iova, size):
            return size
        end = _end(iova, size, all)
        return self.space.unmap((iova, end), partial(self._chosen, iova, end, all), may_wait)

    def _unmap_reporting(self, iova: int, size: int, all: bool, bitmap: ClientBitmap, may_wait: bool) -> int:
        check_bitmap(bitmap, size, bitmap.pgsize)
        end = _end(iova, size, all)
        if not may_wait:
            raise MustWait
        return self._dirty.unmap((iova, end), partial(self._chosen_tracked, iova, end, bitmap), bitmap)

    def update_vaddr(self, client: Client, iova: int, vaddr: int, size: int, may_wait: bool = True) -> None:
        """Give a mapping whose vaddr was invalidated a new vaddr. It may be in another process.

        Raises ``OSError``: EINVAL and EOVERFLOW as :meth:`map`, ENOENT (nothing is mapped there), EINVAL (not
        exactly one mapping, or its vaddr is valid), ENOMEM (RLIMIT_MEMLOCK of the other process). Pinned
        memory is pinned anew, which waits for the client: :class:`MustWait`, with nothing changed, if
        ``may_wait`` is False.
        """
        check_range(size, iova, vaddr)
        self._vaddrs.update(client, vaddr, partial(self._chosen_invalid, iova, size), may_wait)

    def invalidate_vaddr(self, iova: int, size: int, all: bool = False) -> int:
        """Take the vaddr of mappings away until :meth:`update_vaddr`. Returns the bytes of the mappings.

        Raises ``OSError``: EBUSY while a mediated group is attached or a mapping is being made, EINVAL, with
        nothing changed, when a mapping has no vaddr already, otherwise as :meth:`unmap`.
        """
        return self._vaddrs.invalidate(lambda: self._chosen(iova, _end(iova, size, all), all))

    def start_tracking(self) -> None:
        """Track dirty pages. It is no error if tracking is on already. Raises ``OSError``: EACCES on a type1
        that is not v2, EINVAL when a mapping is too large."""
        self._check_v2()
        self._dirty.start()

    def stop_tracking(self) -> None:
        """Forget dirty pages and stop tracking. Raises ``OSError(EACCES)`` on a type1 that is not v2."""
        self._check_v2()
        self._dirty.stop()

    def report_dirty(self, iova: int, size: int, bitmap: ClientBitmap) -> None:
        """Report the pages of the range that devices wrote since the last report in ``bitmap``. Worker only.

        The range may have holes, but must not cut a mapping. Raises ``OSError``: EACCES on a type1 that is
        not v2, EOVERFLOW, EINVAL (range, bitmap, not tracking), EFAULT (the bitmap's memory; see
        :meth:`DirtyTracking.report`).
        """
        self._check_v2()
        if iova + size > ADDRESSES:
            raise OSError(errno.EOVERFLOW, "the range wraps around the end of the address space")
        check_bitmap(bitmap, size, PAGE_SIZE)
        check_range(size, iova)
        self._dirty.report(iova, partial(self._chosen_whole, iova, iova + size), bitmap)

    # ---- rules that choose the mappings of a call: under the lock of the space ----

    def _chosen(self, iova: int, end: int, all: bool) -> list[Mapping]:
        mappings = self.space.mappings
        one = mappings.exact(iova, end)
        if one is not None:
            return [one]
        if self.v2 and not all:
            self._check_whole(iova, end)
        found = mappings.within(iova, end)
        return [] if found and found[0].iova < iova else found

    def _chosen_tracked(self, iova: int, end: int, bitmap: ClientBitmap) -> list[Mapping]:
        if not (self.space.mappings.tracked and bitmap.pgsize == PAGE_SIZE):
            raise OSError(errno.EINVAL, "dirty pages are not tracked, or not in this page size")
        return self._chosen(iova, end, all=False)

    def _chosen_whole(self, iova: int, end: int) -> list[Mapping]:
        if not self.space.mappings.tracked:
            raise OSError(errno.EINVAL, "dirty pages are not tracked")
        self._check_whole(iova, end)
        return self.space.mappings.within(iova, end)

    def _chosen_invalid(self, iova: int, size: int) -> Mapping:
        found = self.space.mappings.within(iova, iova + size)
        if not found:
            raise OSError(errno.ENOENT, f"iova {iova:#x} is not mapped")
        mapping = found[0]
        if mapping.vaddr_valid or (mapping.iova, mapping.size) != (iova, size):
            raise OSError(errno.EINVAL, f"iova {iova:#x} has a vaddr, or is not a whole mapping")
        return mapping

    def _check_whole(self, iova: int, end: int) -> None:
        edge = self.space.mappings.split_by(iova, end)
        if edge is not None:
            raise OSError(errno.EINVAL, f"iova {edge:#x} is inside a mapping")

    def _check_v2(self) -> None:
        if not self.v2:
            raise OSError(errno.EACCES, "only type1v2 tracks dirty pages")


def _end(iova: int, size: int, all: bool) -> int:
    """The address behind the range of an unmap. Raises ``OSError`` as :meth:`Type1.unmap`."""
    if not all:
        check_range(size, iova)
        return iova + size
    if iova or size:
        raise OSError(errno.EINVAL, "unmapping all takes neither iova nor size")
    return ADDRESSES
