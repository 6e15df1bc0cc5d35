# SPDX-License-Identifier: Apache-2.0
"""What a recording says of a device: its regions, interrupts and capabilities, for a model of it.

Every ValueError is one line that says why no model can be made.  State: none.  Source: <linux/vfio.h>
(VFIO_DEVICE_FLAGS_*, VFIO_REGION_INFO_CAP_*, VFIO_IRQ_INFO_*).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from devmodel.device.pci import PciRegion
from devmodel.irq.irqs import IrqIndex
from devmodel.irq.kinds import PciIrq
from devmodel.models.plain import PlainBar, PlainSpec
from devmodel.pci import regs
from devmodel.pci.barkind import BarKind
from devmodel.pci.image import Image
from vfsfuse.recording.recording import RecordedDevice, Region, region_name
from vfsfuse.recording.regioninfo import SPARSE_MMAP, TYPE, chain_of

DEVICE_RESET, DEVICE_PCI = 1, 2
_EVENTFD, _MASKABLE, _AUTOMASKED, _NORESIZE = 1, 2, 4, 8
_LEAST = 8
"""Bytes that each capability which is looked at has at least."""
_MOST_32BIT = 1 << 31
_BAD_CHAIN = "has a broken chain of capabilities"


class Type(NamedTuple):
    """The type of a region from index 9 on."""

    type: int
    subtype: int


def check(device: RecordedDevice) -> None:
    """Raise ValueError for a device that is no PCI function, or of which too little was recorded."""
    if not device.flags & DEVICE_PCI:
        raise ValueError(f"{device.name} is no PCI device")
    if len(device.config) not in (regs.CFG_SPACE_SIZE, regs.CFG_SPACE_EXP_SIZE):
        raise ValueError(
            f"{device.name} has {len(device.config)} bytes of configuration space, not 256 or 4096"
        )
    own = sorted(index for index in device.regions if index >= PciRegion.COUNT)
    if own != list(range(PciRegion.COUNT, PciRegion.COUNT + len(own))):
        raise ValueError(f"the regions {own} of {device.name} do not follow one another")


def plain_spec(device: RecordedDevice, rom: bytes) -> PlainSpec:
    """The function that it is, without behaviour. `rom` is what its ROM begins with."""
    image = Image.of(device.config)
    found = device.regions.get(PciRegion.ROM)
    bars = tuple(_bar(region, image) for region in device.regions.values() if _is_bar(region))
    return PlainSpec(config=device.config, bars=bars, rom=rom, rom_size=0 if found is None else found.size)


def _is_bar(region: Region) -> bool:
    return 0 <= region.index < regs.STD_NUM_BARS and region.size > 0


def _bar(region: Region, image: Image) -> PlainBar:
    """The register of a virtual function's BAR may say nothing of its kind."""
    is_wide = region.size > _MOST_32BIT and not image.bar(region.index)
    return PlainBar(region.index, region.size, BarKind.MEM64 if is_wide else None)


def irq_indexes(device: RecordedDevice) -> list[IrqIndex | None]:
    """Its interrupts in the order of VFIO's indexes."""
    found: list[IrqIndex | None] = []
    for index in PciIrq:
        irq = device.irqs.get(index)
        flags = 0 if irq is None else irq.flags
        said = flags & _EVENTFD, flags & _MASKABLE, flags & _AUTOMASKED, flags & _NORESIZE
        found.append(None if irq is None else IrqIndex(irq.count, *map(bool, said)))
    return found


def mappable_areas(region: Region) -> tuple[tuple[int, int], ...] | None:
    """The (offset, size) of what a client may map of a region with FLAG_MMAP. None is all of it. Raises
    ValueError for capabilities that are none."""
    for body in _capabilities(region, SPARSE_MMAP):
        (count,) = struct.unpack_from("<I", body)
        if len(body) < 8 + 16 * count:
            raise ValueError(f"{region_name(region.index)} {_BAD_CHAIN}")
        areas = tuple(struct.iter_unpack("<QQ", body[8 : 8 + 16 * count]))
        for offset, size in areas:
            if (offset | size) % mmap.PAGESIZE or offset + size > region.size:
                raise ValueError(f"{region_name(region.index)} has no {size:#x} bytes at {offset:#x} to map")
        return areas
    return None


def type_of(region: Region) -> Type:
    """The type of a region from index 9 on, 0 and 0 without one. Raises ValueError as mappable_areas."""
    for body in _capabilities(region, TYPE):
        return Type(*struct.unpack_from("<II", body))
    return Type(0, 0)


def _capabilities(region: Region, wanted: int) -> Iterator[bytes]:
    """What is behind the header of each capability with this id."""
    chain = chain_of(region.capabilities)
    found = [each.content for each in chain.capabilities if each.id == wanted]
    if not chain.is_ascending or any(len(content) < _LEAST for content in found):
        raise ValueError(f"{region_name(region.index)} {_BAD_CHAIN}")
    yield from found


def names_of(device: RecordedDevice, region: int) -> Mapping[tuple[int, int], str]:
    """The names of a region's registers by offset and size: of those that overlap, the first."""
    found: dict[tuple[int, int], str] = {}
    end = 0
    for index, offset, size in sorted(device.names):
        if index == region and offset >= end:
            found[offset, size] = device.names[index, offset, size]
            end = offset + size
    return found
