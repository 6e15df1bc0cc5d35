# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/vfio: one container for each open (<linux/vfio.h>, its container and type1 interfaces).

The meaning of each ioctl is in devmodel.vfio.container.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import MustWait
from devmodel.vfio.container import (
    Container,
    DirtyRange,
    IommuInfo,
    dirty_pages,
    iommu_info,
    map_dma,
    tracking,
    unmap_dma,
)
from devmodel.vfio.module import VfioModule
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Kind
from ioctl_shim.client import CAP_SYS_RAWIO, Caller
from ioctl_shim.lane import Opened, OpenRequest
from ioctl_shim.processes import Processes
from vfsfuse.vfio.chain import InfoCap, dma_avail, iova_range, packed, reply
from vfsfuse.vfio.fops import Request, VfioFops, answers

USER_ADDRESSES = 2**47
"""The end of the memory of a 64-bit process."""
_BITMAP_SIZE = int(ffi.sizeof("struct vfio_bitmap"))
_DIRTY_GET_SIZE = int(ffi.sizeof("struct vfio_iommu_type1_dirty_bitmap_get"))


class DirtyBitmap:
    """A client's struct vfio_bitmap (devmodel's ClientBitmap)."""

    __slots__ = ("_caller", "_data", "pgsize", "size")

    def __init__(self, caller: Caller, bitmap: Any) -> None:
        """Raises OSError(EINVAL) for a bitmap outside the address space of a process."""
        self._caller, self._data = caller, int(bitmap.data)
        self.pgsize, self.size = int(bitmap.pgsize), int(bitmap.size)
        if self._data + self.size > USER_ADDRESSES:
            raise OSError(errno.EINVAL, f"a dirty bitmap of {self.size} bytes at {self._data:#x}")

    def read(self, offset: int, size: int) -> bytes:
        return self._caller.read(self._data + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._caller.write(self._data + offset, data)


class ContainerFops(VfioFops):
    """One open of dev/vfio/vfio."""

    __slots__ = ("container", "processes")
    kind = Kind.CONTAINER

    def __init__(self, container: Container, processes: Processes) -> None:
        self.container, self.processes = container, processes

    @classmethod
    def opener(
        cls, module: VfioModule, locked: LockedMemory, st_dev: Callable[[], int]
    ) -> Callable[[OpenRequest], Opened]:
        """The function that opens dev/vfio/vfio of a lab.  `module` has the parameters of the lab's modules,
        `locked` accounts for the memory that containers pin, `st_dev` returns that of the mount's files."""
        return lambda request: Opened(cls(Container(module, locked), Processes(st_dev)))

    @property
    def subject(self) -> str:
        return "container"

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
        type1, info = self.container.type1, request.argument.value
        found = iommu_info(type1)
        info.flags = lib.VFIO_IOMMU_INFO_PGSIZES
        info.iova_pgsizes = found.pgsizes
        reply(request.argument, lib.VFIO_IOMMU_INFO_CAPS, _capabilities(found))
        return 0

    @answers("VFIO_IOMMU_MAP_DMA")
    def map_dma(self, request: Request) -> int | None:
        type1, dma, may_wait = self.container.type1, request.argument.value, not request.on_pump
        try:
            map_dma(type1, self.processes.of(request.tid), dma.flags, dma.iova, dma.vaddr, dma.size, may_wait)
        except MustWait:  # memory is pinned, which takes as long as the client likes
            return None
        return 0

    @answers("VFIO_IOMMU_UNMAP_DMA")
    def unmap_dma(self, request: Request) -> int | None:
        type1, argument, may_wait = self.container.type1, request.argument, not request.on_pump
        dma = argument.value
        try:
            if dma.flags:
                bitmap = partial(_bitmap_behind, request)
                dma.size = unmap_dma(type1, dma.flags, dma.iova, dma.size, bitmap, may_wait)
            else:
                dma.size = type1.unmap(dma.iova, dma.size, may_wait=may_wait)
        except MustWait:  # another thread may wait: the memory may be of this mount
            return None
        argument.reply()
        return 0

    @answers("VFIO_IOMMU_DIRTY_PAGES")
    def dirty_pages(self, request: Request) -> int:
        type1 = tracking(self.container.type1)
        dirty_pages(type1, request.argument.value.flags, lambda: _dirty_range(request))
        return 0

    def unknown(self, cmd: int, arg: int | None, tid: int) -> int:
        _ = self.container.type1  # without a type1 every ioctl fails, as in the kernel
        return super().unknown(cmd, arg, tid)

    def release(self) -> None:
        self.container.close()


def _bitmap_behind(request: Request) -> DirtyBitmap:
    """The struct vfio_bitmap that follows struct vfio_iommu_type1_dma_unmap."""
    if request.room < _BITMAP_SIZE:
        raise OSError(errno.EINVAL, f"argsz {request.argument.argsz} has no room for a bitmap")
    bitmap: Any = ffi.new("struct vfio_bitmap *")
    request.caller.read_into(request.arg + request.row.minsz, bitmap, _BITMAP_SIZE)
    return DirtyBitmap(request.caller, bitmap)


def _dirty_range(request: Request) -> DirtyRange:
    """The struct vfio_iommu_type1_dirty_bitmap_get that follows the header."""
    if request.room < _DIRTY_GET_SIZE:
        raise OSError(errno.EINVAL, f"argsz {request.argument.argsz} has no room for a range")
    wanted: Any = ffi.new("struct vfio_iommu_type1_dirty_bitmap_get *")
    request.caller.read_into(request.arg + request.row.minsz, wanted, _DIRTY_GET_SIZE)
    return DirtyRange(wanted.iova, wanted.size, DirtyBitmap(request.caller, wanted.bitmap))


def _capabilities(info: IommuInfo) -> list[InfoCap]:
    """The capabilities of IOMMU_GET_INFO, in the kernel's order."""
    migration = packed("uint64_t[]", [info.dirty_pgsizes, info.max_dirty_bitmap])
    found = [
        InfoCap(lib.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 1, bytes(8) + migration),
        dma_avail(info.dma_avail),
    ]
    if info.iova_ranges:
        found.append(iova_range(info.iova_ranges))
    return found
