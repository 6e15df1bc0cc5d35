# SPDX-License-Identifier: Apache-2.0
"""An open VFIO device: its information ioctls, and its regions at index << 40 (<linux/vfio.h>, vfio-pci)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.region.backing import REGION_SHIFT
from devmodel.region.region import Region
from devmodel.vfio.group import DeviceFile
from ioctl_shim._native import ffi, lib
from ioctl_shim.lane import WHOLE, Opened
from vfsfuse.vfio.chain import InfoCap, reply
from vfsfuse.vfio.features import FeatureCalls
from vfsfuse.vfio.files import Request, answers
from vfsfuse.vfio.gfx import GfxCalls
from vfsfuse.vfio.irqs import IrqCalls
from vfsfuse.vfio.opened import RegionFacts, Services
from vfsfuse.vfio.pcicalls import PciCalls
from vfsfuse.vfio.port import Port

MUST_EXIST = 7
"""Regions from here on (config, VGA) are EINVAL when absent; an absent BAR or ROM is one of size 0."""
_HEADER = ffi.sizeof("struct vfio_info_cap_header")


class DeviceFops(IrqCalls, PciCalls, FeatureCalls, GfxCalls):
    """One open of a device, through its group or through dev/vfio/devices/vfio<N>."""

    __slots__ = ()

    @answers("VFIO_DEVICE_GET_INFO")
    def get_info(self, request: Request) -> int:
        info = request.argument.value
        info.flags = lib.VFIO_DEVICE_FLAGS_PCI if self.device.is_pci else 0
        info.flags |= lib.VFIO_DEVICE_FLAGS_RESET if self.device.resettable else 0
        info.num_regions = len(self.device.regions)
        info.num_irqs = len(self.device.irqs)
        reply(request.argument, lib.VFIO_DEVICE_FLAGS_CAPS, ())  # no capability fits what the models are
        return 0

    @answers("VFIO_DEVICE_GET_REGION_INFO")
    def get_region_info(self, request: Request) -> int:
        argument = request.argument
        info = argument.value
        index = info.index
        facts = self.regions.get(index)
        if facts is None:
            facts = self.regions[index] = self._look_at(index)
        info.offset = index << REGION_SHIFT
        info.size, info.flags, caps = facts
        reply(argument, lib.VFIO_REGION_INFO_FLAG_CAPS, caps)
        return 0

    @answers("VFIO_DEVICE_RESET")
    def reset(self, request: Request) -> int:
        (self.function or self.device).reset()
        return 0

    def _look_at(self, index: int) -> RegionFacts:
        if index >= len(self.device.regions):
            raise OSError(errno.EINVAL, f"region {index}")
        region = self.device.regions[index]
        if region is None and index >= MUST_EXIST:
            raise OSError(errno.EINVAL, f"no region {index}")
        if region is None:
            return 0, 0, ()
        return region.size, self._region_flags(region), tuple(self._region_caps(index, region))

    def _region_flags(self, region: Region) -> int:
        flags = lib.VFIO_REGION_INFO_FLAG_READ if region.readable else 0
        flags |= lib.VFIO_REGION_INFO_FLAG_WRITE if region.writable else 0
        flags |= lib.VFIO_REGION_INFO_FLAG_MMAP if region.mappable and self.mappable else 0
        return int(flags)

    def _region_caps(self, index: int, region: Region) -> Iterator[InfoCap]:
        device = self.device
        if not isinstance(device, PciDevice):
            return
        if region.mappable and self.mappable:
            table = device.msix_table
            if region.areas is not None:
                yield _sparse_mmap(region.areas)
            elif table is not None and index == table.bar:
                yield InfoCap(lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, b"")
        if index >= PciRegion.COUNT:
            own = device.own_regions[index - PciRegion.COUNT]
            yield _cap(
                "struct vfio_region_info_cap_type", lib.VFIO_REGION_INFO_CAP_TYPE, own.type, own.subtype
            )


def _cap(struct: str, identity: int, *fields: int) -> InfoCap:
    """A capability whose struct has `fields` after its header."""
    value = ffi.new(f"{struct} *", [{}, *fields])
    return InfoCap(identity, 1, bytes(ffi.buffer(value))[_HEADER:])


def _sparse_mmap(areas: tuple[tuple[int, int], ...]) -> InfoCap:
    identity = lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP
    head = _cap("struct vfio_region_info_cap_sparse_mmap", identity, len(areas), 0)
    body = ffi.new("struct vfio_region_sparse_mmap_area[]", areas)
    return head._replace(body=head.body + bytes(ffi.buffer(body)))


def open_device(
    opened: DeviceFile, port: Port, services: Services, released: Callable[[], None] | None = None
) -> Opened:
    """The answer to an open of the device that `opened` holds, which is closed when this fails.

    `released` is called on the device lane when the last descriptor of the open is closed.
    """
    try:
        backing_id = port.backing_id()
        file = DeviceFops(opened, services, backing_id > 0, released)
        return Opened(file, port.memory(), WHOLE, backing_id, regions=opened.device)
    except BaseException:
        opened.close()
        raise
