# SPDX-License-Identifier: Apache-2.0
"""The devices of one IOMMU group that are bound to a context. An IOMMU cannot keep them apart, so all of them
do DMA through one HWPT: that which some of them are attached to.

State: changes under ``DeviceGroup.lock``, which is held for no wait; the lock of a device is taken under it.
Only the thread that has the ``turn``, which may wait, attaches and detaches; the end of a device takes no
turn. Source: <linux/vfio.h> (VFIO_DEVICE_ATTACH_IOMMUFD_PT), Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import threading
from typing import Protocol

from devmodel.iommu.dmaspace import DmaSpace


class DmaDevice(Protocol):
    """A device that does DMA."""

    def connect(self, space: DmaSpace | None) -> None:
        """Do DMA through ``space`` from now on. Does not wait."""

    def settle(self) -> None:
        """Wait for the DMA that is under way. ``OSError(EBUSY)`` when it does not end."""


class Translation(Protocol):
    """What a group is attached to: an HWPT."""

    space: DmaSpace


class DeviceGroup:
    """``bound`` are the devices. ``attached`` are those that are attached, ``hwpt`` is what to."""

    __slots__ = ("attached", "bound", "hwpt", "lock", "turn", "users")

    def __init__(self) -> None:
        self.lock, self.turn = threading.RLock(), threading.Lock()
        self.hwpt: Translation | None = None
        self.bound: tuple[DmaDevice, ...] = ()
        self.attached: set[object] = set()
        self.users = 0
        """How many devices are bound, or about to be. Under the lock of :class:`DeviceGroups`."""

    def move(self, hwpt: Translation | None) -> None:
        """All devices do DMA through ``hwpt`` from now on. Under :attr:`lock`."""
        self.hwpt = hwpt
        for each in self.bound:
            each.connect(None if hwpt is None else hwpt.space)

    def settle(self) -> None:
        """Wait for the DMA that has begun. With the :attr:`turn`. ``OSError(EBUSY)`` when some does not
        end."""
        for each in self.bound:
            each.settle()


class DeviceGroups:
    """Those of a context, by their IOMMU groups."""

    __slots__ = ("_found", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[object, DeviceGroup] = {}

    def enter(self, group: object, device: DmaDevice) -> DeviceGroup:
        """``device`` of ``group`` is bound. It does DMA where the others do from now on. Does not wait. Any
        thread."""
        with self._lock:
            found = self._found.setdefault(group, DeviceGroup())
            found.users += 1
        with found.lock:
            found.bound += (device,)
            device.connect(None if found.hwpt is None else found.hwpt.space)
        return found

    def leave(self, group: object, device: DmaDevice) -> None:
        """The opposite of :meth:`enter`, for a device that is not attached."""
        found = self._found[group]
        with found.lock:
            found.bound = tuple(each for each in found.bound if each is not device)
            device.connect(None)
        with self._lock:
            found.users -= 1
            if not found.users:
                del self._found[group]
