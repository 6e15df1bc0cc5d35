# SPDX-License-Identifier: Apache-2.0
"""The answers of DEVICE_GET_INFO, GET_REGION_INFO and GET_IRQ_INFO, as values.

Threads: any; nothing here changes.  Source: <linux/vfio.h>; vfio-pci for the indexes that are an error.
"""

import errno
from collections.abc import Iterator
from typing import NamedTuple

from devmodel.device.base import Device
from devmodel.device.pci import PciDevice, PciRegion
from devmodel.irq.irqs import IrqIndex
from devmodel.region.region import Region
from devmodel.vfio.devicefile import DeviceFile

MUST_EXIST = 7
"""Regions from this index on (config, VGA) are EINVAL when absent.  An absent BAR or ROM has size 0."""


class DeviceInfo(NamedTuple):
    """The device as a whole: its bus, whether it has a reset, and its number of regions and interrupt
    indexes."""

    is_pci: bool
    resettable: bool
    regions: int
    irqs: int


class SparseMmap(NamedTuple):
    """Only these (offset, size) areas of a region can be mapped."""

    areas: tuple[tuple[int, int], ...]


class MsixMappable(NamedTuple):
    """The MSI-X table of the region can be mapped with the rest of it."""


class RegionType(NamedTuple):
    """The type of a region beyond the fixed ones of vfio-pci."""

    type: int
    subtype: int


RegionCapability = SparseMmap | MsixMappable | RegionType


class RegionInfo(NamedTuple):
    """A region: its size in bytes, the accesses that a client may make, and its capabilities."""

    size: int
    readable: bool
    writable: bool
    mappable: bool
    capabilities: tuple[RegionCapability, ...]


ABSENT = RegionInfo(0, False, False, False, ())


def device_info(opened: DeviceFile) -> DeviceInfo:
    """The answer of DEVICE_GET_INFO."""
    device, resettable = opened.device, opened.assignable.resettable
    return DeviceInfo(device.is_pci, resettable, len(device.regions), len(device.irqs))


def region_info(device: Device, index: int, mappable: bool) -> RegionInfo:
    """The answer of GET_REGION_INFO for region ``index``.  It never changes while the device is open.

    ``mappable`` is whether this open of the device can map the region, if it is memory.  Raises
    ``OSError(EINVAL)``.
    """
    region = device.regions[index] if index < len(device.regions) else None
    if region is None:
        if index >= MUST_EXIST:
            raise OSError(errno.EINVAL, f"no region {index}")
        return ABSENT
    mapped = region.mappable and mappable
    capabilities = tuple(_capabilities(device, index, region, mapped))
    return RegionInfo(region.size, region.readable, region.writable, mapped, capabilities)


def irq_info(device: Device, index: int) -> IrqIndex:
    """The answer of GET_IRQ_INFO for interrupt ``index``.  Raises ``OSError(EINVAL)`` when there is none."""
    found = device.irqs[index] if index < len(device.irqs) else None
    if found is None:
        raise OSError(errno.EINVAL, f"irq index {index}")
    return found


def _capabilities(device: Device, index: int, region: Region, mapped: bool) -> Iterator[RegionCapability]:
    if not isinstance(device, PciDevice):
        return
    table = device.msix_table
    if mapped and region.areas is not None:
        yield SparseMmap(region.areas)
    elif mapped and table is not None and index == table.bar:
        yield MsixMappable()
    if index >= PciRegion.COUNT:
        own = device.own_regions[index - PciRegion.COUNT]
        yield RegionType(own.type, own.subtype)
