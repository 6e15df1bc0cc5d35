# SPDX-License-Identifier: Apache-2.0
"""An open VFIO device: its information ioctls, and its regions at index << 40 (<linux/vfio.h>, vfio-pci)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from devmodel.backing import REGION_SHIFT
from devmodel.device import IrqIndex
from devmodel.vfio import DeviceFile as Hold
from ioctl_shim._native import lib
from ioctl_shim.abi import Kind
from ioctl_shim.lane import WHOLE, Opened
from vfsfuse.vfio.files import Request, VfioFile, answers
from vfsfuse.vfio.port import Port

OFFSET_MASK = (1 << REGION_SHIFT) - 1
IRQ_FLAGS = {
    "eventfd": lib.VFIO_IRQ_INFO_EVENTFD,
    "maskable": lib.VFIO_IRQ_INFO_MASKABLE,
    "automasked": lib.VFIO_IRQ_INFO_AUTOMASKED,
    "noresize": lib.VFIO_IRQ_INFO_NORESIZE,
}
MUST_EXIST = 7
"""Regions from here on (config, VGA) are EINVAL when absent; an absent BAR or ROM is one of size 0."""


class DeviceFile(VfioFile):
    """One open of a device, through its group or through dev/vfio/devices/vfio<N>."""

    __slots__ = ("device", "hold", "mappable", "released")
    kind = Kind.DEVICE

    def __init__(self, hold: Hold, mappable: bool, released: Callable[[], None] | None) -> None:
        self.hold, self.device = hold, hold.device
        self.mappable, self.released = mappable, released

    def read(self, offset: int, size: int) -> bytes:
        return self.device.read(offset >> REGION_SHIFT, offset & OFFSET_MASK, size)

    def write(self, offset: int, data: bytes) -> int:
        return self.device.write(offset >> REGION_SHIFT, offset & OFFSET_MASK, data)

    @answers("VFIO_DEVICE_GET_INFO")
    def get_info(self, request: Request) -> int:
        info = request.argument.value
        info.flags = lib.VFIO_DEVICE_FLAGS_PCI if self.device.is_pci else 0
        info.flags |= lib.VFIO_DEVICE_FLAGS_RESET if self.device.resettable else 0
        info.num_regions = len(self.device.regions)
        info.num_irqs = len(self.device.irqs)
        request.argument.reply()
        return 0

    @answers("VFIO_DEVICE_GET_REGION_INFO")
    def get_region_info(self, request: Request) -> int:
        info = request.argument.value
        if info.index >= len(self.device.regions):
            raise OSError(errno.EINVAL, f"region {info.index}")
        region = self.device.regions[info.index]
        if region is None and info.index >= MUST_EXIST:
            raise OSError(errno.EINVAL, f"no region {info.index}")
        info.offset, info.cap_offset = info.index << REGION_SHIFT, 0
        info.size = 0 if region is None else region.size
        info.flags = 0
        if region is not None:
            info.flags |= lib.VFIO_REGION_INFO_FLAG_READ if region.readable else 0
            info.flags |= lib.VFIO_REGION_INFO_FLAG_WRITE if region.writable else 0
            info.flags |= lib.VFIO_REGION_INFO_FLAG_MMAP if region.mappable and self.mappable else 0
        request.argument.reply()
        return 0

    @answers("VFIO_DEVICE_GET_IRQ_INFO")
    def get_irq_info(self, request: Request) -> int:
        info = request.argument.value
        irq = self.device.irqs[info.index] if info.index < len(self.device.irqs) else None
        if irq is None:
            raise OSError(errno.EINVAL, f"irq index {info.index}")
        info.flags, info.count = irq_flags(irq), irq.count
        request.argument.reply()
        return 0

    @answers("VFIO_DEVICE_RESET")
    def reset(self, request: Request) -> int:
        self.device.reset()
        return 0

    def release(self) -> None:
        self.hold.close()
        if self.released is not None:
            self.released()


def irq_flags(irq: IrqIndex) -> int:
    return sum(flag for name, flag in IRQ_FLAGS.items() if getattr(irq, name))


def open_device(hold: Hold, port: Port, released: Callable[[], None] | None = None) -> Opened:
    """The answer to an open of the device that `hold` keeps, which is let go of when this fails.

    `released` is called on the device lane when the last descriptor of the open is closed.
    """
    try:
        backing_id = port.backing_id()
        file = DeviceFile(hold, backing_id > 0, released)
        return Opened(file, port.memory(), WHOLE, backing_id)
    except BaseException:
        hold.close()
        raise
