# SPDX-License-Identifier: Apache-2.0
"""VFIO containers: groups that share an IOMMU, and the meaning of a container's ioctls.

Threads: the device lane, and threads that may wait.  State is under ``Container.lock``, which is taken after
a group's lock.  Source: <linux/vfio.h>, Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

from devmodel.client import Client
from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import MAX_BITMAP_SIZE, ClientBitmap, Extension, IommuGroup
from devmodel.iommu.driver import Iommu
from devmodel.iommu.noiommu import NoIommu
from devmodel.iommu.type1 import Type1
from devmodel.vfio.flags import DmaMap, DmaUnmap, IommuDirtyPages
from devmodel.vfio.module import VfioModule

MAP_PROT = DmaMap.FLAG_READ | DmaMap.FLAG_WRITE
"""Flags of MAP_DMA that are a protection; their numbers are Prot's."""
MAP_KNOWN = MAP_PROT | DmaMap.FLAG_VADDR
UNMAP_ALONE = DmaUnmap.FLAG_ALL | DmaUnmap.FLAG_VADDR
"""Flags of UNMAP_DMA that cannot be combined with a dirty bitmap."""
UNMAP_KNOWN = UNMAP_ALONE | DmaUnmap.FLAG_GET_DIRTY_BITMAP
_TYPE1 = frozenset({Extension.TYPE1, Extension.TYPE1V2, Extension.UNMAP_ALL})
_IS_V2 = {Extension.TYPE1: False, Extension.TYPE1V2: True}


class ContainerGroup(IommuGroup, Protocol):
    """A group as a container sees it."""

    @property
    def noiommu(self) -> bool:
        """Whether the group stands for a device without an IOMMU."""


class Container:
    """One open of /dev/vfio/vfio. Its groups keep it and its mappings alive after it is closed.

    ``module`` has the parameters of VFIO's modules. ``locked`` accounts for pinned memory together with
    other containers.
    """

    __slots__ = ("closed", "groups", "iommu", "lock", "locked", "module")
    claims: ClassVar[bool] = True

    def __init__(self, module: VfioModule | None = None, locked: LockedMemory | None = None) -> None:
        self.lock = threading.Lock()
        self.groups: dict[int, ContainerGroup] = {}
        self.iommu: Iommu | None = None
        self.closed = False
        self.module = module or VfioModule()
        self.locked = locked or LockedMemory()

    @property
    def type1(self) -> Type1:
        """The container's type1.

        Raises ``OSError`` as the kernel does: EINVAL before SET_IOMMU, ENOTTY when noiommu was set.
        """
        iommu = self.iommu
        if isinstance(iommu, Type1):
            return iommu
        if iommu is None:
            raise OSError(errno.EINVAL, "the container has no IOMMU set")
        raise OSError(errno.ENOTTY, "the container has no type1 IOMMU")

    def check_extension(self, extension: int) -> int:
        """1 if the container supports ``extension`` in its present state, else 0."""
        iommu = self.iommu
        if iommu is not None:
            return iommu.check_extension(extension)
        return int(extension in self._offered())

    def set_iommu(self, kind: int, rawio: bool = False) -> None:
        """Choose the IOMMU. ``rawio`` is whether the client has CAP_SYS_RAWIO.

        Raises ``OSError``: EINVAL without a group or when an IOMMU is set already, ENODEV for an unknown
        ``kind``, EPERM for NOIOMMU without CAP_SYS_RAWIO, otherwise as :meth:`Iommu.attach` for a group.
        """
        with self.lock:
            if not self.groups or self.iommu is not None:
                raise OSError(errno.EINVAL, "the container has no group, or an IOMMU already")
            if kind not in self._offered():
                raise OSError(errno.ENODEV, f"no IOMMU of kind {kind}")
            iommu = self._make(kind, rawio)
            try:
                for group in self.groups.values():
                    iommu.attach(group)
            except OSError:
                iommu.close()
                raise
            self.iommu = iommu

    def attach(self, group: ContainerGroup) -> None:
        """Add a group; for :class:`GroupFile`, without a lock. A container that has mappings may have to pin
        them for the group, and a client decides how long that takes.

        Raises ``OSError``: EBADF once the container is closed, EPERM when its groups have IOMMUs and this one
        has none, or the other way round, otherwise as :meth:`Iommu.attach`.
        """
        with self.lock:
            if self.closed:
                raise OSError(errno.EBADF, "the container is closed")
            if any(other.noiommu is not group.noiommu for other in self.groups.values()):
                raise OSError(errno.EPERM, "groups with and without IOMMU do not mix")
            self.groups[group.number] = group  # keeps the IOMMU if all other groups leave now
            iommu = self.iommu
        if iommu is None:
            return
        try:
            iommu.attach(group)
        except BaseException:
            self._remove(group, attached=False)
            raise

    def detach(self, group: ContainerGroup) -> None:
        """Remove a group. The last one takes the IOMMU and all mappings with it. For :class:`GroupFile`."""
        self._remove(group, attached=True)

    def _remove(self, group: ContainerGroup, attached: bool) -> None:
        with self.lock:
            del self.groups[group.number]
            iommu = self.iommu
            if iommu is None:
                return
            if attached:
                iommu.detach(group)
            if self.groups:
                return
            self.iommu = None
        iommu.close()

    def check_ready(self) -> None:
        """Raises ``OSError(EINVAL)`` before SET_IOMMU."""
        if self.iommu is None:
            raise OSError(errno.EINVAL, "the container has no IOMMU set")

    def link(self, device: object) -> None:
        """A device of a group is opened. It is connected by its group."""

    def close(self) -> None:
        """The file is closed. Groups that are still attached go on using the container."""
        with self.lock:
            self.closed = True

    def _offered(self) -> frozenset[Extension]:
        """The IOMMUs that can be set. Groups decide whether noiommu or the others; without a group it is
        both."""
        kinds = {group.noiommu for group in self.groups.values()} or {False, True}
        offered = _TYPE1 if False in kinds else frozenset[Extension]()
        return (
            offered | {Extension.NOIOMMU}
            if True in kinds and self.module.enable_unsafe_noiommu_mode
            else offered
        )

    def _make(self, kind: int, rawio: bool) -> Iommu:
        """To add an IOMMU: CONTRIBUTING.md, "Adding an IOMMU API or backend"."""
        if kind == Extension.NOIOMMU:
            if not rawio:
                raise OSError(errno.EPERM, "no IOMMU: it takes CAP_SYS_RAWIO")
            return NoIommu()
        if kind not in _IS_V2:
            raise OSError(errno.EINVAL, f"extension {kind} is not a kind of IOMMU")
        return Type1(_IS_V2[Extension(kind)], self.module.dma_entry_limit, self.locked)


class IommuInfo(NamedTuple):
    """The answer of IOMMU_GET_INFO. Sizes are bytes; ``iova_ranges`` are (first, last), () for any
    address."""

    pgsizes: int
    dirty_pgsizes: int
    max_dirty_bitmap: int
    dma_avail: int
    iova_ranges: tuple[tuple[int, int], ...]


class DirtyRange(NamedTuple):
    """The request of DIRTY_PAGES with FLAG_GET_BITMAP: a range of iovas, and the bitmap to fill."""

    iova: int
    size: int
    bitmap: ClientBitmap


def iommu_info(type1: Type1) -> IommuInfo:
    """The answer of IOMMU_GET_INFO."""
    pgsizes = type1.pgsizes
    return IommuInfo(pgsizes, pgsizes & -pgsizes, MAX_BITMAP_SIZE, type1.dma_avail, type1.iova_ranges)


def map_dma(
    type1: Type1, client: Client, flags: int, iova: int, vaddr: int, size: int, may_wait: bool
) -> None:
    """MAP_DMA: a new mapping, or (FLAG_VADDR) a new vaddr for one.

    Raises ``OSError``: EINVAL for unknown flags and for a protection together with FLAG_VADDR, otherwise as
    :meth:`Type1.map` and :meth:`Type1.update_vaddr`. Raises :class:`MustWait` as they do, unless it
    ``may_wait``.
    """
    prot = flags & MAP_PROT
    if prot == flags:
        type1.map(client, iova, vaddr, size, prot, may_wait)
    elif flags & ~MAP_KNOWN or prot:
        raise OSError(errno.EINVAL, f"MAP_DMA flags {flags:#x}: a new vaddr comes without a protection")
    else:
        type1.update_vaddr(client, iova, vaddr, size, may_wait)


def unmap_dma(
    type1: Type1, flags: int, iova: int, size: int, bitmap: Callable[[], ClientBitmap], may_wait: bool
) -> int:
    """UNMAP_DMA with flags.  Returns the bytes that were unmapped, or (FLAG_VADDR) lost their vaddr.

    With FLAG_GET_DIRTY_BITMAP, ``bitmap`` decodes the struct behind the request.  Raises ``OSError``: EINVAL
    for flags that are unknown or cannot be combined, otherwise as ``bitmap``, :meth:`Type1.unmap` and
    :meth:`Type1.invalidate_vaddr`.  Raises :class:`MustWait` as :meth:`Type1.unmap`, unless it ``may_wait``.
    """
    wants_bitmap = bool(flags & DmaUnmap.FLAG_GET_DIRTY_BITMAP)
    if flags & ~UNMAP_KNOWN or (wants_bitmap and flags & UNMAP_ALONE):
        raise OSError(errno.EINVAL, f"UNMAP_DMA flags {flags:#x}")
    everything = bool(flags & DmaUnmap.FLAG_ALL)
    if flags & DmaUnmap.FLAG_VADDR:
        return type1.invalidate_vaddr(iova, size, everything)
    return type1.unmap(iova, size, everything, bitmap() if wants_bitmap else None, may_wait)


def tracking(type1: Type1) -> Type1:
    """The same type1.  Raises ``OSError(EACCES)``, before anything else, when it is not v2."""
    if not type1.v2:
        raise OSError(errno.EACCES, "only type1v2 tracks dirty pages")
    return type1


def dirty_pages(type1: Type1, flags: int, wanted: Callable[[], DirtyRange]) -> None:
    """DIRTY_PAGES: start or stop tracking, or report the dirty pages of the range that ``wanted`` decodes.

    ``type1`` is what :func:`tracking` gives.  Raises ``OSError``: EINVAL unless ``flags`` is exactly one
    known flag, otherwise as ``wanted`` and the methods of :class:`Type1`.
    """
    if flags == IommuDirtyPages.FLAG_START:
        type1.start_tracking()
    elif flags == IommuDirtyPages.FLAG_STOP:
        type1.stop_tracking()
    elif flags == IommuDirtyPages.FLAG_GET_BITMAP:
        type1.report_dirty(*wanted())
    else:
        raise OSError(errno.EINVAL, "not exactly one known flag")
