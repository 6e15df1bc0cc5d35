# SPDX-License-Identifier: Apache-2.0
"""dev/iommu as a container of VFIO: the ioctls of containers, and VFIO_IOAS.

The meaning of each ioctl is in devmodel.iommufd.compat.  Source: <linux/vfio.h>, <linux/iommufd.h>.
Threads and errors: vfsfuse.vfio.fops.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from devmodel.iommu.api import Extension, MustWait
from devmodel.iommufd.compat import DMA_AVAIL, IoasOp
from devmodel.vfio.container import MAP_PROT
from devmodel.vfio.flags import DmaUnmap
from ioctl_shim._native import lib
from ioctl_shim.client import CAP_SYS_RAWIO
from vfsfuse.vfio.chain import InfoCap, build, dma_avail, iova_range
from vfsfuse.vfio.contextfile import ContextFops, check_flags
from vfsfuse.vfio.fops import Request, answers


class CompatFops(ContextFops):
    """The container that a context is."""

    __slots__ = ()

    @answers("IOMMU_VFIO_IOAS")
    def vfio_ioas(self, request: Request) -> int:
        asked = request.argument.value
        check_flags(reserved=asked.reserved)
        if asked.op > IoasOp.CLEAR:
            raise OSError(errno.EOPNOTSUPP, f"VFIO_IOAS operation {asked.op}")
        if asked.op == IoasOp.GET:
            asked.ioas_id = self.compat.ioas_id()
            request.argument.reply()
        elif asked.op == IoasOp.SET:
            self.compat.set_ioas(asked.ioas_id)
        else:
            self.compat.clear_ioas()
        return 0

    @answers("VFIO_GET_API_VERSION")
    def api_version(self, request: Request) -> int:
        return int(lib.VFIO_API_VERSION)

    @answers("VFIO_CHECK_EXTENSION")
    def check_extension(self, request: Request) -> int:
        return self.compat.check_extension(request.arg)

    @answers("VFIO_SET_IOMMU")
    def set_iommu(self, request: Request) -> int:
        rawio = request.arg == Extension.NOIOMMU and request.caller.capable(CAP_SYS_RAWIO)
        self.compat.set_iommu(request.arg, rawio)
        return 0

    @answers("VFIO_IOMMU_GET_INFO")
    def get_info(self, request: Request) -> int:
        argument = request.argument
        info, found = argument.value, self.compat.info()
        capabilities = dma_avail(DMA_AVAIL), iova_range(found.iova_ranges)  # in the kernel's order
        needed = _write(request, capabilities, argument.argsz)
        info.flags = lib.VFIO_IOMMU_INFO_PGSIZES | lib.VFIO_IOMMU_INFO_CAPS
        info.iova_pgsizes = found.pgsizes
        if argument.argsz < needed:
            info.argsz, info.cap_offset = needed, 0
        else:
            info.cap_offset = argument.row.size
        argument.reply()
        return 0

    @answers("VFIO_IOMMU_MAP_DMA")
    def map_dma(self, request: Request) -> int | None:
        dma = request.argument.value
        if dma.flags & ~MAP_PROT:
            raise OSError(errno.EINVAL, f"MAP_DMA flags {dma.flags:#x}")
        client = self.processes.of(request.tid)
        try:
            self.compat.map_dma(client, dma.flags, dma.iova, dma.vaddr, dma.size, not request.on_pump)
        except MustWait:  # memory is pinned, which takes as long as the client likes
            return None
        return 0

    @answers("VFIO_IOMMU_UNMAP_DMA")
    def unmap_dma(self, request: Request) -> int | None:
        argument = request.argument
        dma = argument.value
        if dma.flags & ~DmaUnmap.FLAG_ALL:
            raise OSError(errno.EINVAL, f"UNMAP_DMA flags {dma.flags:#x}")
        everything = bool(dma.flags & DmaUnmap.FLAG_ALL)
        try:
            dma.size, stopped = self.compat.unmap_dma(dma.iova, dma.size, everything, not request.on_pump)
        except MustWait:  # for a DMA under way
            return None
        if stopped is not None:
            request.caller.write_from(request.arg, dma, argument.row.size)
            raise OSError(stopped.errno, stopped.strerror)  # as Ioas.unmap()
        argument.reply()
        return 0


def _write(request: Request, capabilities: Sequence[InfoCap], room: int) -> int:
    """Write the capabilities behind the struct, as far as each of them fits into the ``room`` that the client
    has from the start of the struct. Returns the room that all of them take. Raises OSError(EFAULT)."""
    at = request.row.size
    for number, one in enumerate(capabilities):
        alone = build(at, [one])
        behind = at + len(alone)
        if at + one.size <= room:
            chained = build(at, capabilities[number:]) if behind <= room else alone
            request.caller.write(request.arg + at, chained[: one.size])
        at = behind
    return at
