# SPDX-License-Identifier: Apache-2.0
"""type1: the IOMMU API of containers, over the implementations (devmodel.iommu.backend) their groups need.

State: under ``Dma.lock``. Called from the device lane (and its worker), never by devices.
Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU"; the order of checks is vfio_iommu_type1's.
"""

import errno

from devmodel.client import Client, Pages
from devmodel.iommu.api import (
    ADDRESSES,
    DMA_ENTRY_LIMIT,
    MAX_BITMAP_PAGES,
    PAGE_SIZE,
    ClientBitmap,
    Extension,
    Iommu,
    Prot,
    check_range,
)
from devmodel.iommu.backend import LockedMemory
from devmodel.iommu.dirty import check_bitmap
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.parts import parts_of
from devmodel.iommu.tracking import Tracked, report

NOTIFY_LIMIT = 10
"""How often a device is asked to unpin before its model is called wrong."""


class Type1(Tracked, Iommu):
    """One container's mappings. Every :class:`Backend` in use has been told of each of them."""

    __slots__ = ("limit",)

    def __init__(
        self, v2: bool = True, limit: int = DMA_ENTRY_LIMIT, locked: LockedMemory | None = None
    ) -> None:
        """``v2`` chooses TYPE1v2's unmap, which never splits or overshoots; ``limit`` bounds the mappings;
        ``locked`` accounts for pinned pages together with other containers."""
        super().__init__(v2, locked or LockedMemory())
        self.limit = limit

    @property
    def dma_avail(self) -> int:
        """How many more mappings fit."""
        return self.limit - len(self.mappings)

    def check_extension(self, extension: int) -> int:
        if extension == Extension.UPDATE_VADDR:
            return int(self.mediated is None)
        return int(extension in _EXTENSIONS)

    def map(self, client: Client, iova: int, vaddr: int, size: int, prot: int) -> None:
        """Let ``size`` bytes from ``iova`` stand for ``client``'s memory from ``vaddr``; touches none of it.

        Raises ``OSError``: EINVAL (no protection, no size, misaligned, not a valid iova), EOVERFLOW (wraps
        around), EEXIST (overlaps a mapping), ENOSPC (too many mappings); while a physical function is
        attached also ENOMEM (RLIMIT_MEMLOCK) and EFAULT (no such memory).
        """
        allowed = prot & 3
        if not allowed:
            raise OSError(errno.EINVAL, "a mapping must be readable or writable by the device")
        partial = not size or (size | iova | vaddr) & _IN_PAGE
        if partial or iova + size > ADDRESSES or vaddr + size > ADDRESSES:
            check_range(size, iova, vaddr)  # says what is wrong: to call it each time would cost a sixth
        mapping = Mapping(client, iova, vaddr, size, allowed)
        with self.lock:
            if self._strict or self.tracking or len(self.mappings.by_start) >= self.limit:
                self._check_new(iova, size)
                for backend in self._strict:
                    backend.map(mapping)  # only the pinning one, of which there is one, can refuse
            if not self.mappings.add(mapping):
                raise _exists(iova)

    def update_vaddr(self, client: Client, iova: int, vaddr: int, size: int) -> None:
        """Give a mapping whose vaddr was invalidated a new one, maybe of another process.

        Raises ``OSError``: EINVAL and EOVERFLOW as :meth:`map`, ENOENT (nothing is mapped there), EINVAL (not
        exactly one mapping, or its vaddr is valid), ENOMEM (RLIMIT_MEMLOCK of the other process).
        """
        check_range(size, iova, vaddr)
        with self.lock:
            found = self.mappings.within(iova, iova + size)
            if not found:
                raise OSError(errno.ENOENT, f"iova {iova:#x} is not mapped")
            mapping = found[0]
            if mapping.vaddr_valid or (mapping.iova, mapping.size) != (iova, size):
                raise OSError(errno.EINVAL, f"iova {iova:#x} has a vaddr, or is not a whole mapping")
            self.locked.move(mapping, client)
            if mapping.pages is not None:
                mapping.pages = _repinned(mapping, client, vaddr)
            mapping.client, mapping.vaddr, mapping.vaddr_valid = client, vaddr, True
            self._invalid -= 1

    def unmap(self, iova: int, size: int, all: bool = False, bitmap: ClientBitmap | None = None) -> int:
        """Remove the mappings of a range, or all (then both numbers are 0); returns the bytes unmapped.

        v2 raises ``OSError(EINVAL)`` where an edge of the range would split a mapping. v1 removes the whole
        of each mapping that starts in the range, and nothing when the range starts inside one. Otherwise
        EINVAL and EOVERFLOW as :meth:`map`. No mappings in the range is no error: 0. With ``bitmap`` the
        dirty pages are reported there; EINVAL unless they are tracked. EBUSY when a DMA there does not end.
        """
        if bitmap is None and not all and self._unmap_one(iova, size):
            return size
        if bitmap is not None:
            check_bitmap(bitmap, size, bitmap.pgsize)
        end = self._unmap_end(iova, size, all)
        for _ in range(NOTIFY_LIMIT):
            with self.lock:
                found = self._to_unmap(iova, end, all, bitmap)
                pinned = [mapping for mapping in found if mapping.pins]
                if not pinned:
                    self._drain(iova, end)
                    left = [mapping for mapping in found if mapping.live]  # another unmap may have come first
                    return self._remove(left, iova, bitmap)
                users = list(self.mediated.users) if self.mediated else []
            for mapping in pinned:
                for user in users:
                    user.dma_unmap(mapping.iova, mapping.size)
        raise RuntimeError(f"a device does not unpin iova {iova:#x}")

    def invalidate_vaddr(self, iova: int, size: int, all: bool = False) -> int:
        """Mark mappings as without a vaddr until :meth:`update_vaddr`; returns their bytes.

        ``OSError``: EBUSY while a mediated group is attached, EINVAL when one is invalid already (and then
        nothing has changed), otherwise as :meth:`unmap`.
        """
        with self.lock:
            if self.mediated is not None:
                raise OSError(errno.EBUSY, "mediated devices use vaddrs at any time")
            end = self._unmap_end(iova, size, all)
            found = self._to_unmap(iova, end, all, None)
            if not _all_valid(found):
                raise OSError(errno.EINVAL, "a mapping of the range has no vaddr already")
            for mapping in found:
                mapping.vaddr_valid = False
            self._invalid += len(found)
            return sum(mapping.size for mapping in found)

    def translate(self, iova: int, size: int) -> list[tuple[Client, int, int, Prot]]:
        """(client, vaddr, size, protection) of the memory behind a range; a :class:`DmaFault` for a hole."""
        with self.lock:
            parts = parts_of(self.mappings, iova, size)
            if parts is None:
                raise self._fault(iova, size, False, "not mapped")
        return [
            (part.mapping.client, part.mapping.vaddr + part.offset, part.size, part.mapping.prot)
            for part in parts
        ]

    def _check_new(self, iova: int, size: int) -> None:
        """Whatever there is against a new mapping, in the kernel's order."""
        if self.mappings.within(iova, iova + size):
            raise _exists(iova)
        if not self.dma_avail:
            raise OSError(errno.ENOSPC, f"{self.limit} mappings are the limit")
        for backend in self._strict:
            if not backend.valid(iova, iova + size):
                raise OSError(errno.EINVAL, f"iova {iova:#x} is reserved or beyond what the IOMMU can")
        if self.tracking and size // PAGE_SIZE > MAX_BITMAP_PAGES:
            raise OSError(errno.EINVAL, f"a mapping of {size:#x} bytes is too large to be tracked")

    def _unmap_one(self, iova: int, size: int) -> bool:
        """Remove the mapping of exactly this range, if nobody has to be told, asked or waited for."""
        with self.lock:
            mapping = self.mappings.by_start.get(iova)
            if (
                mapping is None
                or mapping.size != size
                or mapping.pins
                or mapping.charged
                or not mapping.vaddr_valid
                or self._strict
                or self._inflight
            ):
                return False
            self.mappings.remove(mapping)
            return True

    def _unmap_end(self, iova: int, size: int, all: bool) -> int:
        if not all:
            check_range(size, iova)
            return iova + size
        if iova or size:
            raise OSError(errno.EINVAL, "unmapping all takes neither iova nor size")
        return 2**64

    def _to_unmap(self, iova: int, end: int, all: bool, bitmap: ClientBitmap | None) -> list[Mapping]:
        if bitmap is not None and not (self.tracking and bitmap.pgsize == PAGE_SIZE):
            raise OSError(errno.EINVAL, "dirty pages are not tracked, or not in this page size")
        one = self.mappings.exact(iova, end)
        if one is not None:
            return [one]
        if self.v2 and not all:
            self._check_whole(iova, end)
        found = self.mappings.within(iova, end)
        return [] if found and found[0].iova < iova else found

    def _remove(self, found: list[Mapping], iova: int, bitmap: ClientBitmap | None) -> int:
        unmapped = 0
        for mapping in found:
            if bitmap is not None:
                report(mapping, iova, bitmap)
            self.mappings.remove(mapping)
            self._forget(mapping, self._backends)
            unmapped += mapping.size
        return unmapped


_IN_PAGE = PAGE_SIZE - 1
_EXTENSIONS = frozenset({Extension.TYPE1, Extension.TYPE1V2, Extension.DMA_CC, Extension.UNMAP_ALL})


def _exists(iova: int) -> OSError:
    return OSError(errno.EEXIST, f"iova {iova:#x} is mapped already")


def _all_valid(mappings: list[Mapping]) -> bool:
    return all(mapping.vaddr_valid for mapping in mappings)


def _repinned(mapping: Mapping, client: Client, vaddr: int) -> Pages | None:
    """The pages at the new vaddr; if there are none, what is pinned stays, as the kernel does not look."""
    try:
        return client.pin(vaddr, mapping.size, bool(mapping.prot & Prot.WRITE))
    except OSError:
        return mapping.pages
