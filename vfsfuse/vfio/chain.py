# SPDX-License-Identifier: Apache-2.0
"""Capability chains behind the structs of INFO ioctls, and the argsz handshake that tells a client how much
room they need.

Source: <linux/vfio.h> (struct vfio_info_cap_header and the comment on it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from devmodel.irq.irqs import IrqIndex
from devmodel.vfio.info import MsixMappable, RegionCapability, RegionInfo, SparseMmap
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Argument

IRQ_FLAGS = {
    "eventfd": lib.VFIO_IRQ_INFO_EVENTFD,
    "maskable": lib.VFIO_IRQ_INFO_MASKABLE,
    "automasked": lib.VFIO_IRQ_INFO_AUTOMASKED,
    "noresize": lib.VFIO_IRQ_INFO_NORESIZE,
}
ALIGNMENT = 8
_HEADER = int(ffi.sizeof("struct vfio_info_cap_header"))


class InfoCap(NamedTuple):
    """One capability. `body` is the bytes after its header."""

    id: int
    version: int
    body: bytes

    @property
    def size(self) -> int:
        """Bytes with the header."""
        return _HEADER + len(self.body)


RegionFacts = tuple[int, int, Sequence[InfoCap]]
"""Size in bytes, VFIO_REGION_INFO_FLAG_* and capabilities of a region."""


def packed(kind: str, value: Any) -> bytes:
    """The bytes of a new cffi object of this kind, a pointer to a struct or an array, with this value."""
    return bytes(ffi.buffer(ffi.new(kind, value)))


def build(start: int, caps: Sequence[InfoCap]) -> bytes:
    """The chain for offset `start` of a client's buffer. Every header is at a multiple of ALIGNMENT."""
    chain = b""
    for number, cap in enumerate(caps, start=1):
        header: Any = ffi.new("struct vfio_info_cap_header *", {"id": cap.id, "version": cap.version})
        padding = -cap.size % ALIGNMENT
        if number < len(caps):
            header.next = start + len(chain) + cap.size + padding
        chain += bytes(ffi.buffer(header)) + cap.body + bytes(padding)
    return chain


def reply(argument: Argument, caps_flag: int, caps: Sequence[InfoCap]) -> None:
    """Answer with the struct of `argument` and `caps`. If argsz was too small for `caps`, answer with the
    size that they need."""
    info = argument.value
    info.cap_offset = 0
    if not caps:
        argument.reply()
        return
    info.flags |= caps_flag
    chain = build(argument.row.size, caps)
    needed = argument.row.size + len(chain)
    if argument.argsz < needed:
        info.argsz = needed
        argument.reply()
    else:
        info.cap_offset = argument.row.size
        argument.reply(chain)


def dma_avail(mappings: int) -> InfoCap:
    """The capability of IOMMU_GET_INFO that says how many mappings can still be made."""
    return InfoCap(lib.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, mappings.to_bytes(4, "little"))


def iova_range(ranges: Sequence[tuple[int, int]]) -> InfoCap:
    """The capability of IOMMU_GET_INFO with the valid ranges, as (first, last) iova."""
    count = packed("uint32_t[]", [len(ranges), 0])
    body = packed("struct vfio_iova_range[]", [{"start": first, "end": last} for first, last in ranges])
    return InfoCap(lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, count + body)


def irq_flags(irq: IrqIndex) -> int:
    """VFIO_IRQ_INFO_* of an interrupt index."""
    return sum(flag for name, flag in IRQ_FLAGS.items() if getattr(irq, name))


def region_facts(info: RegionInfo) -> RegionFacts:
    """The answer of GET_REGION_INFO."""
    flags = lib.VFIO_REGION_INFO_FLAG_READ if info.readable else 0
    flags |= lib.VFIO_REGION_INFO_FLAG_WRITE if info.writable else 0
    flags |= lib.VFIO_REGION_INFO_FLAG_MMAP if info.mappable else 0
    return info.size, int(flags), tuple(map(_region_cap, info.capabilities))


def _region_cap(found: RegionCapability) -> InfoCap:
    if isinstance(found, MsixMappable):
        return InfoCap(lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, b"")
    if isinstance(found, SparseMmap):
        identity, areas = lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP, found.areas
        head = _cap("struct vfio_region_info_cap_sparse_mmap", identity, len(areas), 0)
        body = ffi.new("struct vfio_region_sparse_mmap_area[]", areas)
        return head._replace(body=head.body + bytes(ffi.buffer(body)))
    return _cap("struct vfio_region_info_cap_type", lib.VFIO_REGION_INFO_CAP_TYPE, found.type, found.subtype)


def _cap(struct: str, identity: int, *fields: int) -> InfoCap:
    """A capability with `fields` after the header of its struct."""
    value = ffi.new(f"{struct} *", [{}, *fields])
    return InfoCap(identity, 1, bytes(ffi.buffer(value))[_HEADER:])
