# SPDX-License-Identifier: Apache-2.0
"""The device lane's side of a device: its memory for the pump, and its backing file for passthrough mmap.

A port's state is under its own lock: the device lane opens it, the trio thread closes it.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from functools import partial

from devmodel.device.base import Device, DriverAccess
from devmodel.region.access import Access
from devmodel.region.region import Memory
from devmodel.vfio.group import Assignable
from ioctl_shim import lane, pumped
from ioctl_shim._native import lib
from ioctl_shim.lane import Opened, OpenRequest, PlainFile
from vfsfuse.vfio.ownfiles import OwnFiles

log = logging.getLogger(__name__)

GUARDED = Access(lib.shim_guarded_move, lib.shim_guarded_fill)
OWNER_ONLY_ABOVE = 64
"""Bytes of config space that users other than the file's owner may read, as with pci_read_config()."""


class Port:
    """One device's port.  `device` is made when it is first needed, everything else at the first open.  It
    stays the port's: when the device gets another model, it gets another port.

    The kernel looks a backing id up when it has our answer to the open.  So an id stays registered until the
    last file that was opened with it is released, also when the device is removed before that.
    """

    __slots__ = ("_assignable", "_backing_id", "_closed", "_device", "_files", "_lock", "_memory", "_own")

    def __init__(self, assignable: Assignable) -> None:
        self._assignable = assignable
        self._lock = threading.Lock()
        self._device: Device | None = None
        self._memory: pumped.PumpRegions | None = None
        self._backing_id: int | None = None
        self._closed = False
        self._files = 0  # opened with the backing file and not released
        self._own: OwnFiles | None = None

    @property
    def device(self) -> Device:
        if self._device is None:
            made = self._assignable.device
            with self._lock:
                if self._device is None:  # another thread may have found another model
                    self._device = made
        return self._device

    @property
    def own(self) -> OwnFiles:
        """The files of regions of their own.  Raises OSError(ENODEV)."""
        device = self.device
        with self._lock:
            self._check_open()
            if self._own is None:
                self._own = OwnFiles(device, self.memory, self._can_map)
            return self._own

    def memory(self) -> pumped.PumpRegions:
        """The regions of the device that the pump answers by itself.  Raises OSError(ENODEV)."""
        device = self.device
        with self._lock:
            self._check_open()
            if self._memory is None:
                device.backing.access = GUARDED
                self._memory = _shown(device, self._assignable.access)
                device.hide_by(self._memory.hide)
            return self._memory

    def take_backing(self) -> int:
        """The kernel's id of the device's memfd as a backing file, for one open file, which gives it back by
        `give_backing`.  0 when the kernel cannot map it directly (rootless, or an old kernel).

        Raises OSError, and then there is nothing to give back: ENODEV for a removed device, or a failure that
        may pass, such as ENOMEM.  It is asked again at the next open: the kernel lets no two opens of a file
        have different backing files."""
        mappable = any(region.mappable for region in self.device.regions if region is not None)
        with self._lock:
            self._check_open()
            if not mappable:
                return 0
            backing_id = self._registered()
            self._files += backing_id > 0
            return backing_id

    def take_resource(self, index: int, inode: int, may_wait: bool) -> tuple[int, Callable[[], None]]:
        """The backing file for one open resource<N> of memory region `index`, and the function that gives it
        back.  `inode` is that of the file.

        Raises MustWait when the thread must not wait and the region has to be moved first (OwnFiles), OSError
        as `take_backing`."""
        own = self.own
        if index:
            return own.open_one(index, inode, may_wait), partial(own.close_one, inode)
        if not self._files:
            own.look(may_wait)
        backing_id = self.take_backing()
        return backing_id, partial(self.give_backing, backing_id)

    def give_backing(self, backing_id: int) -> None:
        """A file that was opened with this id is released, or was not opened after all.  Any thread."""
        if backing_id:
            with self._lock:
                self._files -= 1
                self._end_backing()

    def close(self) -> None:
        """The device is removed.  Its open files answer ENODEV from now on.  Trio thread."""
        with self._lock:
            self._closed = True
            if self._memory is not None:
                self._memory.revoke()
                self._memory = None
            self._end_backing()
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def _can_map(self) -> bool:
        with self._lock:
            self._check_open()
            return self._registered() > 0

    # ---- under the lock ----

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ENODEV, "removed")

    def _registered(self) -> int:
        if self._backing_id is None:
            self._backing_id = lane.open_backing(self.device.backing.fd)
        return self._backing_id

    def _end_backing(self) -> None:
        if self._closed and not self._files and self._backing_id:
            lane.close_backing(self._backing_id)
            self._backing_id = None


def _shown(device: Device, access: DriverAccess) -> pumped.PumpRegions:
    memory, model = pumped.PumpRegions(device.lock), type(device)
    asked = model.read is not Device.read or model.write is not Device.write
    for index, region in enumerate(device.regions[: pumped.MOST_REGIONS]):
        if isinstance(region, Memory) and region.direct:
            with device.lock:
                place = device.backing.place(index)
            if place is not None:
                memory.map(index, *place, region.backed)
        elif region is not None and not asked and (stored := access.stored(index)) is not None:
            memory.show(index, stored.data, stored.plain, stored.registers, stored.owner)
        else:
            continue
        hole = access.hole(index)
        if hole is not None:
            memory.leave_out(index, *hole)
    return memory


class RegionFile(PlainFile):
    """An open `config` or `resource<N>`: one region from offset 0.  The rules at its end are those of
    sysfs."""

    __slots__ = ("_limit", "_released", "device", "index")

    def __init__(
        self, device: Device, index: int, limit: int, released: Callable[[], None] | None = None
    ) -> None:
        """`released` is called when the last descriptor of the file is closed."""
        self.device, self.index, self._limit, self._released = device, index, limit, released

    def release(self) -> None:
        if self._released is not None:
            self._released()

    @property
    def subject(self) -> str:
        """The device of the file's calls, by the name that listeners get."""
        return self.device.name

    def read(self, offset: int, size: int) -> bytes:
        self.device.check_present()
        if offset >= self._limit:
            return self.device.read(self.index, 0, 0)  # end of file, or ENODEV
        return self.device.read(self.index, offset, min(size, self._limit - offset))

    def write(self, offset: int, data: bytes) -> int:
        self.device.check_present()
        size = self.device.region(self.index).size
        if offset >= size:
            raise OSError(errno.EFBIG, "beyond the region's end")
        return self.device.write(self.index, offset, data[: size - offset])


def open_region(port: Port, index: int, request: OpenRequest, limit: int | None = None) -> Opened:
    """Open region `index` of the port's device as a file of its own.  Reads end at `limit`, if there is
    one.  Memory can be mapped where the kernel can do it (vfsfuse.vfio.ownfiles).

    Raises OSError as open(2), and on a pump MustWait."""
    region = port.device.region(index)
    end = region.size if limit is None else limit
    if not isinstance(region, Memory):
        return Opened(RegionFile(port.device, index, end))
    memory = port.memory() if region.direct else None
    backing_id, released = port.take_resource(index, request.nodeid, may_wait=not request.on_pump)
    return Opened(RegionFile(port.device, index, end, released), memory, index, backing_id)
