# SPDX-License-Identifier: Apache-2.0
"""Open files of devices, by which clients hold a device.

Threads: the device lane opens and closes. State is under the lock of the device's group.
Source: <linux/vfio.h> (VFIO_GROUP_GET_DEVICE_FD), Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack

from devmodel.vfio.group import Assignable
from devmodel.vfio.groupfile import GroupFile


class DeviceFile:
    """One open of a device, through its group or (``group_file`` None) through its own character device."""

    __slots__ = ("_closed", "assignable", "device", "group_file", "low_power")

    def __init__(self, assignable: Assignable, group_file: GroupFile | None = None) -> None:
        """Hold the device until :meth:`close`.

        Raises ``OSError``: ENODEV when the device is gone, EINVAL when its group's file was closed or
        revoked.
        """
        self.assignable = assignable
        self.group_file = group_file
        self.low_power = False
        self._closed = False
        with assignable.group.lock:
            if group_file is not None and group_file.group.opened is not group_file:
                raise OSError(errno.EINVAL, "the group's file is closed")
            self._hold()
            if group_file is not None:
                group_file.get()

    @classmethod
    def named(cls, group_file: GroupFile, name: str, rawio: bool = False) -> DeviceFile:
        """Open the device ``name`` through its group. Raises ``OSError`` as :meth:`GroupFile.get_device`."""
        with group_file.group.lock:
            return cls(group_file.get_device(name, rawio), group_file)

    @property
    def by_cdev(self) -> bool:
        """Whether it was opened through its own character device, not through its group."""
        return self.group_file is None

    def _hold(self) -> None:
        first = self.assignable.hold()
        with ExitStack() as undo:
            undo.callback(self.assignable.drop)
            self.device = self.assignable.device
            if first:
                self.assignable.first_opened()
                undo.callback(self.assignable.last_closed)
            container = self.group_file.container if self.group_file is not None else None
            self.device.opened(container.iommu if container is not None else None)
            undo.pop_all()

    def close(self) -> None:
        """Release the device and the group's file. May be called twice."""
        with self.assignable.group.lock:
            if self._closed:
                return
            self._closed = True
            with ExitStack() as after:  # whatever a model does as it is released, or reset
                if self.group_file is not None:
                    after.callback(self.group_file.put)
                if self.assignable.drop():
                    after.callback(self.assignable.last_closed)
                    self.device.released()
