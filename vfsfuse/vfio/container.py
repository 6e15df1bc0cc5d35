# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/vfio: one container for each open (<linux/vfio.h>, drivers/vfio's container and type1 interfaces)."""

from __future__ import annotations

import errno
from typing import Any

from devmodel.iommu import Prot, Type1
from devmodel.vfio import Container
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Kind
from ioctl_shim.lane import IoctlCall, Opened, OpenRequest
from vfsfuse.vfio.files import Request, VfioFile, answers

MAP_FLAGS: int = lib.VFIO_DMA_MAP_FLAG_READ | lib.VFIO_DMA_MAP_FLAG_WRITE
UNMAP_FLAGS: int = lib.VFIO_DMA_UNMAP_FLAG_ALL


class ContainerFile(VfioFile):
    """One open of dev/vfio/vfio."""

    __slots__ = ("container",)
    kind = Kind.CONTAINER

    def __init__(self) -> None:
        self.container = Container()

    @classmethod
    def open(cls, request: OpenRequest) -> Opened:
        return Opened(cls())

    @property
    def iommu(self) -> Type1:
        """The container's IOMMU.  Raises OSError(EINVAL) before SET_IOMMU, as the kernel does."""
        iommu = self.container.iommu
        if iommu is None:
            raise OSError(errno.EINVAL, "the container has no IOMMU set")
        return iommu

    @answers("VFIO_GET_API_VERSION")
    def api_version(self, request: Request) -> int:
        return int(lib.VFIO_API_VERSION)

    @answers("VFIO_CHECK_EXTENSION")
    def check_extension(self, request: Request) -> int:
        return self.container.check_extension(request.arg)

    @answers("VFIO_SET_IOMMU")
    def set_iommu(self, request: Request) -> int:
        self.container.set_iommu(request.arg)
        return 0

    @answers("VFIO_IOMMU_GET_INFO")
    def get_info(self, request: Request) -> int:
        iommu, argument = self.iommu, request.argument
        info = argument.value
        info.flags = lib.VFIO_IOMMU_INFO_PGSIZES
        info.iova_pgsizes = iommu.pgsizes
        info.cap_offset = 0
        chain = build_chain(argument.row.size, _capabilities(iommu))
        info.flags |= lib.VFIO_IOMMU_INFO_CAPS
        needed = argument.row.size + len(chain)
        if argument.argsz < needed:
            info.argsz = needed  # the client comes back with room for the chain
            argument.reply()
        else:
            info.cap_offset = argument.row.size
            argument.reply(chain)
        return 0

    @answers("VFIO_IOMMU_MAP_DMA")
    def map_dma(self, request: Request) -> int:
        iommu, dma = self.iommu, request.argument.value
        if dma.flags & ~MAP_FLAGS:
            raise OSError(errno.EINVAL, f"MAP_DMA flags {dma.flags:#x}")
        prot = Prot(0)
        prot |= Prot.READ if dma.flags & lib.VFIO_DMA_MAP_FLAG_READ else prot
        prot |= Prot.WRITE if dma.flags & lib.VFIO_DMA_MAP_FLAG_WRITE else prot
        iommu.map(request.client, dma.iova, dma.vaddr, dma.size, prot)
        return 0

    @answers("VFIO_IOMMU_UNMAP_DMA")
    def unmap_dma(self, request: Request) -> int:
        iommu, argument = self.iommu, request.argument
        dma = argument.value
        if dma.flags & ~UNMAP_FLAGS:
            raise OSError(errno.EINVAL, f"UNMAP_DMA flags {dma.flags:#x}")
        dma.size = iommu.unmap(dma.iova, dma.size, bool(dma.flags & lib.VFIO_DMA_UNMAP_FLAG_ALL))
        argument.reply()
        return 0

    def unknown(self, call: IoctlCall) -> int:
        _ = self.iommu  # without one the kernel refuses whatever it is
        return super().unknown(call)

    def release(self) -> None:
        self.container.close()


def _capabilities(iommu: Type1) -> list[tuple[int, int, bytes]]:
    """(id, version, body) of each capability of IOMMU_GET_INFO."""
    ranges = iommu.iova_ranges()
    body: Any = ffi.new("struct vfio_iova_range[]", [{"start": s, "end": e} for s, e in ranges])
    count = len(ranges).to_bytes(4, "little") + bytes(4)
    return [
        (lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, count + bytes(ffi.buffer(body))),
        (lib.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, iommu.dma_avail.to_bytes(4, "little")),
    ]


def build_chain(start: int, capabilities: list[tuple[int, int, bytes]]) -> bytes:
    """A capability chain for offset `start` of a client's buffer: 8-byte headers, every one 8-byte aligned."""
    chain = b""
    for number, (identity, version, body) in enumerate(capabilities, start=1):
        padded = body + bytes(-len(body) % 8)
        following = start + len(chain) + 8 + len(padded) if number < len(capabilities) else 0
        header = {"id": identity, "version": version, "next": following}
        chain += bytes(ffi.buffer(ffi.new("struct vfio_info_cap_header *", header))) + padded
    return chain
