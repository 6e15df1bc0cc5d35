# SPDX-License-Identifier: Apache-2.0
"""The device lane's side of a device: its memory for the pump, and its backing file for passthrough mmap.

A port's state is under its own lock: the device lane opens it, the trio thread closes it.
"""

from __future__ import annotations

import errno
import logging
import threading

from devmodel.device.base import Device
from devmodel.region.access import Access
from devmodel.region.backing import region_offset
from devmodel.region.region import Memory
from devmodel.vfio.group import Assignable
from ioctl_shim import lane, pumped
from ioctl_shim._native import lib
from ioctl_shim.lane import Opened, OpenRequest, PlainFile

log = logging.getLogger(__name__)

GUARDED = Access(lib.shim_guarded_move, lib.shim_guarded_fill)
OWNER_ONLY_ABOVE = 64
"""Bytes of config space that users other than the file's owner may read, as with pci_read_config()."""


class Port:
    """One device's port.  `device` is made when it is first needed, everything else at the first open."""

    __slots__ = ("_assignable", "_backing_id", "_closed", "_lock", "_memory")

    def __init__(self, assignable: Assignable) -> None:
        self._assignable = assignable
        self._lock = threading.Lock()
        self._memory: pumped.PumpRegions | None = None
        self._backing_id: int | None = None
        self._closed = False

    @property
    def device(self) -> Device:
        return self._assignable.device

    def memory(self) -> pumped.PumpRegions:
        """The regions of the device that the pump answers by itself.  Raises OSError(ENODEV)."""
        device = self.device
        with self._lock:
            if self._closed:
                raise OSError(errno.ENODEV, "removed")
            if self._memory is None:
                device.backing.access = GUARDED
                self._memory = _shown(device)
                device.hide_by(self._memory.hide)
            return self._memory

    def backing_id(self) -> int:
        """The kernel's id of the device's memfd as a backing file.  0 when the kernel cannot map it directly
        (rootless, or an old kernel).

        Raises OSError for a failure that may pass, such as ENOMEM, and is asked again at the next open: the
        kernel lets no two opens of a file have different backing files."""
        if not any(region.mappable for region in self.device.regions if region is not None):
            return 0
        with self._lock:
            if self._backing_id is None and not self._closed:
                self._backing_id = lane.open_backing(self.device.backing.fd)
            return self._backing_id or 0

    def close(self) -> None:
        """The device is removed.  Its open files answer ENODEV from now on.  Trio thread."""
        with self._lock:
            self._closed = True
            if self._memory is not None:
                self._memory.revoke()
                self._memory = None
            if self._backing_id:
                lane.close_backing(self._backing_id)


def _shown(device: Device) -> pumped.PumpRegions:
    memory, model = pumped.PumpRegions(device.lock), type(device)
    asked = model.read is not Device.read or model.write is not Device.write
    for index, region in enumerate(device.regions[: pumped.MOST_REGIONS]):
        if isinstance(region, Memory) and region.direct:
            memory.map(index, device.backing.fd, region_offset(index), region.backed)
        elif region is not None and region.stored is not None and not asked:
            stored = region.stored
            memory.show(index, stored.data, stored.plain, stored.registers, stored.owner)
    return memory


class RegionFile(PlainFile):
    """An open `config` or `resource<N>`: one region from offset 0.  The rules at its end are those of
    sysfs."""

    __slots__ = ("_device", "_limit", "index")

    def __init__(self, device: Device, index: int, limit: int) -> None:
        self._device, self.index, self._limit = device, index, limit

    @property
    def subject(self) -> str:
        """The device of the file's calls, by the name that listeners get."""
        return self._device.name

    def read(self, offset: int, size: int) -> bytes:
        self._device.check_present()
        if offset >= self._limit:
            return self._device.read(self.index, 0, 0)  # end of file, or ENODEV
        return self._device.read(self.index, offset, min(size, self._limit - offset))

    def write(self, offset: int, data: bytes) -> int:
        self._device.check_present()
        size = self._device.region(self.index).size
        if offset >= size:
            raise OSError(errno.EFBIG, "beyond the region's end")
        return self._device.write(self.index, offset, data[: size - offset])


def open_region(port: Port, index: int, request: OpenRequest, limit: int | None = None) -> Opened:
    """Open region `index` of the port's device as a file of its own.  Reads end at `limit`, if there is
    one."""
    region = port.device.region(index)
    file = RegionFile(port.device, index, region.size if limit is None else limit)
    if not isinstance(region, Memory) or not region.direct:
        return Opened(file)
    # the kernel maps a backing file at the client's own offset: only region 0 lies at 0
    return Opened(file, port.memory(), index, port.backing_id() if index == 0 else 0)
