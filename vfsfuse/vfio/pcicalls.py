# SPDX-License-Identifier: Apache-2.0
"""What vfio-pci alone answers: hot reset of a bus, and writes by eventfd.  A mediated device's driver knows
neither (ENOTTY).  PCI_HOT_RESET runs on the lane's worker, because it asks which files its group descriptors
are.
"""

from __future__ import annotations

import errno
from functools import partial

from devmodel.device.pci import MsixTable, PciDevice, PciRegion
from devmodel.irq.ioeventfd import IoWrite
from devmodel.lifecycle.function import PciFunction
from devmodel.region.backing import REGION_SHIFT
from devmodel.vfio.group import Group
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Argument
from vfsfuse.vfio.eventfds import borrow, numbers
from vfsfuse.vfio.files import Request, answers
from vfsfuse.vfio.group import GroupFops
from vfsfuse.vfio.opened import OpenDevice

NOT_OWNED = 2**32 - 1
"""VFIO_PCI_DEVID_NOT_OWNED, as the __u32 it is put into."""
WIDTHS = (1, 2, 4, 8)
"""VFIO_DEVICE_IOEVENTFD_8, _16, _32 and _64 are the numbers of bytes."""


class PciCalls(OpenDevice):
    """The ioctls of vfio-pci's own."""

    __slots__ = ()

    def vfio_pci(self) -> PciFunction:
        """The function that vfio-pci drives.  Raises OSError(ENOTTY) for a mediated device."""
        if self.function is None:
            raise OSError(errno.ENOTTY, f"{self.device.name} is not driven by vfio-pci")
        return self.function

    @answers("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO")
    def get_hot_reset_info(self, request: Request) -> int:
        function, argument = self.vfio_pci(), request.argument
        info, bus = argument.value, tuple(function.bus)
        room = (argument.argsz - argument.row.size) // ffi.sizeof("struct vfio_pci_dependent_device")
        info.flags = self._ownership(function)
        info.count = len(bus)
        devices = b"".join(self._dependent(each) for each in bus[:room])
        argument.reply(devices)
        if info.count > room:
            raise OSError(errno.ENOSPC, f"{info.count} devices are affected, and there is room for {room}")
        return 0

    @answers("VFIO_DEVICE_PCI_HOT_RESET")
    def hot_reset(self, request: Request) -> int:
        function, argument = self.vfio_pci(), request.argument
        count = argument.value.count
        if argument.value.flags or bool(count) is self.by_cdev:
            raise OSError(errno.EINVAL, "flags, or groups of a device opened without one")
        if count > len(function.bus):
            raise OSError(errno.EINVAL, f"{count} groups for {len(function.bus)} devices")
        if self.by_cdev:
            function.hot_reset(lambda each: each is function)
        else:
            groups = self._groups(request, argument, count)
            function.hot_reset(lambda each: each.group in groups)
        return 0

    @answers("VFIO_DEVICE_IOEVENTFD")
    def ioeventfd(self, request: Request) -> int:
        self.vfio_pci()
        asked = request.argument.value
        if asked.flags not in WIDTHS or asked.fd < -1:
            raise OSError(errno.EINVAL, f"ioeventfd flags {asked.flags:#x}, descriptor {asked.fd}")
        region, offset = asked.offset >> REGION_SHIFT, asked.offset & ((1 << REGION_SHIFT) - 1)
        self._check_place(region, offset, asked.flags)
        what = IoWrite(region, offset, asked.flags, asked.data)
        if asked.fd < 0:
            self.device.ioeventfds.remove(what)
        else:
            source = partial(borrow, request.caller, asked.fd)
            self.device.ioeventfds.add(what, source, self.services.watcher)
        return 0

    def _ownership(self, function: PciFunction) -> int:
        """Flags of the info: a device opened without its group owns nothing but itself."""
        if not self.by_cdev:
            return 0
        owned = lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED if function.bus == [function] else 0
        return int(lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID | owned)

    def _dependent(self, each: PciFunction) -> bytes:
        place = each.address
        owner = each.group.number
        if self.by_cdev:
            owner = lib.VFIO_PCI_DEVID_OWNED if each is self.function else NOT_OWNED
        device = {"group_id": owner, "segment": place.segment, "bus": place.bus, "devfn": place.devfn}
        return bytes(ffi.buffer(ffi.new("struct vfio_pci_dependent_device *", device)))

    def _groups(self, request: Request, argument: Argument, count: int) -> list[Group]:
        data = request.caller.read(request.arg + argument.row.minsz, 4 * count)
        return [self._group(request, number) for number in numbers(data)]

    def _group(self, request: Request, number: int) -> Group:
        with request.caller.borrowed(number) as copy:
            found = self.services.find_file(copy)
        if not isinstance(found, GroupFops):
            raise OSError(errno.EINVAL, f"descriptor {number} is not a VFIO group")
        return found.file.group

    def _check_place(self, region: int, offset: int, size: int) -> None:
        """Only in a BAR, and not in the MSI-X table.  Raises OSError(EINVAL)."""
        device = self.device
        bar = device.regions[region] if region <= PciRegion.BAR0 + 5 else None
        if bar is None or offset + size > bar.size:
            raise OSError(errno.EINVAL, f"no BAR at {offset:#x} of region {region}")
        table = device.msix_table if isinstance(device, PciDevice) else None
        if table is not None and region == table.bar and _overlaps(table, offset, size):
            raise OSError(errno.EINVAL, f"the MSI-X table is at {offset:#x}")


def _overlaps(table: MsixTable, offset: int, size: int) -> bool:
    return offset < table.offset + table.size and table.offset < offset + size
