# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/vfio: one container for each open (<linux/vfio.h>, its container and type1 interfaces)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from devmodel.iommu import MAX_BITMAP_SIZE, LockedMemory, Type1
from devmodel.vfio.group import Container
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import BY_NAME, Kind
from ioctl_shim.client import CAP_SYS_RAWIO, Caller
from ioctl_shim.lane import Opened, OpenRequest
from ioctl_shim.processes import Processes
from vfsfuse.vfio.chain import InfoCap, reply
from vfsfuse.vfio.files import Request, VfioFops, answers

MAP_FLAGS: int = lib.VFIO_DMA_MAP_FLAG_READ | lib.VFIO_DMA_MAP_FLAG_WRITE | lib.VFIO_DMA_MAP_FLAG_VADDR
PROT_FLAGS: int = lib.VFIO_DMA_MAP_FLAG_READ | lib.VFIO_DMA_MAP_FLAG_WRITE
"""The same numbers as devmodel's Prot."""
DIRTY_FLAG: int = lib.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
ALONE: int = lib.VFIO_DMA_UNMAP_FLAG_ALL | lib.VFIO_DMA_UNMAP_FLAG_VADDR
"""Flags of UNMAP_DMA that do not go with a dirty bitmap."""
USER_ADDRESSES = 2**47
"""Where a 64-bit process' memory ends."""
UNMAP_CMD = BY_NAME["VFIO_IOMMU_UNMAP_DMA"].cmd


class DirtyBitmap:
    """A client's struct vfio_bitmap (devmodel.iommu.ClientBitmap)."""

    __slots__ = ("_client", "_data", "pgsize", "size")

    def __init__(self, client: Caller, bitmap: Any) -> None:
        """Raises OSError(EINVAL) when it is not within a process' address space."""
        self._client, self._data = client, int(bitmap.data)
        self.pgsize, self.size = int(bitmap.pgsize), int(bitmap.size)
        if self._data + self.size > USER_ADDRESSES:
            raise OSError(errno.EINVAL, f"a dirty bitmap of {self.size} bytes at {self._data:#x}")

    def read(self, offset: int, size: int) -> bytes:
        return self._client.read(self._data + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._client.write(self._data + offset, data)


class ContainerFops(VfioFops):
    """One open of dev/vfio/vfio."""

    __slots__ = ("container", "processes")
    kind = Kind.CONTAINER

    def __init__(self, container: Container, processes: Processes) -> None:
        self.container, self.processes = container, processes

    @classmethod
    def opener(
        cls, noiommu: Callable[[], bool], st_dev: Callable[[], int]
    ) -> Callable[[OpenRequest], Opened]:
        """What opens dev/vfio/vfio of a lab.  Its containers share one account of locked memory; `noiommu` is
        whether enable_unsafe_noiommu_mode is on, `st_dev` that of the mount's files."""
        locked = LockedMemory()
        return lambda request: Opened(cls(Container(noiommu, locked), Processes(st_dev)))

    @property
    def iommu(self) -> Type1:
        """The container's type1.  Raises OSError as the kernel does: EINVAL before SET_IOMMU, ENOTTY when
        what was set is no IOMMU."""
        iommu = self.container.iommu
        if isinstance(iommu, Type1):
            return iommu
        if iommu is None:
            raise OSError(errno.EINVAL, "the container has no IOMMU set")
        raise OSError(errno.ENOTTY, "the container has no type1 IOMMU")

    @answers("VFIO_GET_API_VERSION")
    def api_version(self, request: Request) -> int:
        return int(lib.VFIO_API_VERSION)

    @answers("VFIO_CHECK_EXTENSION")
    def check_extension(self, request: Request) -> int:
        return self.container.check_extension(request.arg)

    @answers("VFIO_SET_IOMMU")
    def set_iommu(self, request: Request) -> int:
        rawio = request.arg == lib.VFIO_NOIOMMU_IOMMU and request.caller.capable(CAP_SYS_RAWIO)
        self.container.set_iommu(request.arg, rawio)
        return 0

    @answers("VFIO_IOMMU_GET_INFO")
    def get_info(self, request: Request) -> int:
        iommu, info = self.iommu, request.argument.value
        info.flags = lib.VFIO_IOMMU_INFO_PGSIZES
        info.iova_pgsizes = iommu.pgsizes
        reply(request.argument, lib.VFIO_IOMMU_INFO_CAPS, _capabilities(iommu))
        return 0

    @answers("VFIO_IOMMU_MAP_DMA")
    def map_dma(self, request: Request) -> int:
        iommu, dma = self.iommu, request.argument.value
        flags = dma.flags
        if flags & ~MAP_FLAGS:
            raise OSError(errno.EINVAL, f"MAP_DMA flags {flags:#x}")
        prot = flags & PROT_FLAGS
        process = self.processes.of(request.tid)
        if prot == flags:
            iommu.map(process, dma.iova, dma.vaddr, dma.size, prot)
        elif prot:
            raise OSError(errno.EINVAL, "a new vaddr comes without a protection")
        else:
            iommu.update_vaddr(process, dma.iova, dma.vaddr, dma.size)
        return 0

    @answers("VFIO_IOMMU_UNMAP_DMA")
    def unmap_dma(self, request: Request) -> int | None:
        iommu = self.iommu
        if iommu.busy and request.on_pump:
            return None
        argument = request.argument
        dma = argument.value
        flags, size = dma.flags, dma.size
        if not flags:
            dma.size = iommu.unmap(dma.iova, size)
        else:
            dma.size = self._unmap_specially(iommu, request, flags, size)
        argument.reply()
        return 0

    def _unmap_specially(self, iommu: Type1, request: Request, flags: int, size: int) -> int:
        """An UNMAP_DMA with flags; returns the bytes unmapped."""
        if flags & ~(DIRTY_FLAG | ALONE) or (flags & DIRTY_FLAG and flags & ALONE):
            raise OSError(errno.EINVAL, f"UNMAP_DMA flags {flags:#x}")
        iova = request.argument.value.iova
        everything = bool(flags & lib.VFIO_DMA_UNMAP_FLAG_ALL)
        if flags & lib.VFIO_DMA_UNMAP_FLAG_VADDR:
            return iommu.invalidate_vaddr(iova, size, everything)
        bitmap = self._bitmap_behind(request) if flags & DIRTY_FLAG else None
        return iommu.unmap(iova, size, everything, bitmap)

    @answers("VFIO_IOMMU_DIRTY_PAGES")
    def dirty_pages(self, request: Request) -> int:
        iommu = self.iommu
        if not iommu.v2:
            raise OSError(errno.EACCES, "only type1v2 tracks dirty pages")
        action = _DIRTY_ACTIONS.get(request.argument.value.flags)
        if action is None:
            raise OSError(errno.EINVAL, "not exactly one known flag")
        action(iommu, request)
        return 0

    def defers(self, cmd: int) -> bool:
        """An unmap may have to wait for a DMA, whose memory may be this mount's: not on the device lane."""
        iommu = self.container.iommu
        return iommu.busy if cmd == UNMAP_CMD and isinstance(iommu, Type1) else super().defers(cmd)

    def unknown(self, cmd: int, tid: int) -> int:
        _ = self.iommu  # without one the kernel refuses whatever it is
        return super().unknown(cmd, tid)

    def release(self) -> None:
        self.container.close()

    @staticmethod
    def _bitmap_behind(request: Request) -> DirtyBitmap:
        """The struct vfio_bitmap that follows struct vfio_iommu_type1_dma_unmap."""
        size, start = ffi.sizeof("struct vfio_bitmap"), request.row.minsz
        if request.argument.argsz < start + size:
            raise OSError(errno.EINVAL, f"argsz {request.argument.argsz} has no room for a bitmap")
        bitmap: Any = ffi.new("struct vfio_bitmap *")
        request.caller.read_into(request.arg + start, bitmap, size)
        return DirtyBitmap(request.caller, bitmap)


def _report_dirty(iommu: Type1, request: Request) -> None:
    wanted: Any = ffi.new("struct vfio_iommu_type1_dirty_bitmap_get *")
    size, start = ffi.sizeof("struct vfio_iommu_type1_dirty_bitmap_get"), request.row.minsz
    if request.argument.argsz < start + size:
        raise OSError(errno.EINVAL, f"argsz {request.argument.argsz} has no room for a range")
    request.caller.read_into(request.arg + start, wanted, size)
    bitmap = DirtyBitmap(request.caller, wanted.bitmap)
    iommu.report_dirty(wanted.iova, wanted.size, bitmap)


_DIRTY_ACTIONS: dict[int, Callable[[Type1, Request], None]] = {
    lib.VFIO_IOMMU_DIRTY_PAGES_FLAG_START: lambda iommu, request: iommu.start_tracking(),
    lib.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP: lambda iommu, request: iommu.stop_tracking(),
    lib.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: _report_dirty,
}


def _bytes(struct: str, value: Any) -> bytes:
    return bytes(ffi.buffer(ffi.new(struct, value)))


def _capabilities(iommu: Type1) -> list[InfoCap]:
    """The capabilities of IOMMU_GET_INFO, in the kernel's order."""
    smallest = iommu.pgsizes & -iommu.pgsizes
    migration = _bytes("uint64_t[]", [smallest, MAX_BITMAP_SIZE])
    found = [
        InfoCap(lib.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 1, bytes(8) + migration),
        InfoCap(lib.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, iommu.dma_avail.to_bytes(4, "little")),
    ]
    ranges = iommu.iova_ranges
    if ranges:
        count = _bytes("uint32_t[]", [len(ranges), 0])
        body = _bytes("struct vfio_iova_range[]", [{"start": first, "end": last} for first, last in ranges])
        found.append(InfoCap(lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, count + body))
    return found
