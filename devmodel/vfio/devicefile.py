# SPDX-License-Identifier: Apache-2.0
"""Open files of devices, by which clients hold a device.

Threads: the device lane opens and closes. State is under the lock of the device's group.
Source: <linux/vfio.h> (VFIO_GROUP_GET_DEVICE_FD), Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack

from devmodel.iommu.api import MustWait
from devmodel.iommu.driver import Iommu
from devmodel.iommufd.context import Context
from devmodel.vfio.group import Assignable
from devmodel.vfio.groupfile import GroupFile


class DeviceFile:
    """One open of a device, through its group or (``group_file`` None) by itself.

    ``started`` is whether its client uses the device: a file of the device's own character device does not
    before it is bound (:class:`devmodel.vfio.cdev.CdevFile`).
    """

    __slots__ = ("_closed", "assignable", "device", "group_file", "low_power", "started")

    def __init__(self, assignable: Assignable, group_file: GroupFile | None = None) -> None:
        """Hold the device until :meth:`close`.

        Raises ``OSError``: ENODEV when the device is gone, EINVAL when its group's file was closed or
        revoked.
        """
        self.assignable = assignable
        self.group_file = group_file
        self.low_power = self.started = self._closed = False
        with assignable.group.lock:
            if group_file is not None and group_file.group.opened is not group_file:
                raise OSError(errno.EINVAL, "the group's file is closed")
            assignable.hold()
            with ExitStack() as undo:
                undo.callback(assignable.drop)
                self.device = assignable.device
                self._opened()
                undo.pop_all()
            if group_file is not None:
                group_file.get()

    @classmethod
    def named(
        cls, group_file: GroupFile, name: str, rawio: bool = False, may_wait: bool = True
    ) -> DeviceFile:
        """Open the device ``name`` through its group.

        Raises ``OSError`` as :meth:`GroupFile.get_device`, :meth:`GroupContainer.link` and
        :meth:`DeviceLink.attach`. Raises :class:`MustWait`, with nothing opened, when the group has joined an
        iommufd and the call may not wait.
        """
        if not may_wait and group_file.opening_waits:
            raise MustWait
        with group_file.group.lock:
            made = cls(group_file.get_device(name, rawio), group_file)
            link = group_file.links.get(made.assignable)
        if link is not None:
            try:
                link.attach()
            except BaseException:
                made.close()
                raise
        return made

    @property
    def by_cdev(self) -> bool:
        """Whether it was opened through its own character device, not through its group."""
        return self.group_file is None

    @property
    def context(self) -> Context | None:
        """The iommufd context that the client has bound the device to by this file."""
        return None

    def close(self) -> None:
        """Release the device and the group's file. May be called twice."""
        with self.assignable.group.lock:
            if self._closed:
                return
            self._closed = True
            with ExitStack() as after:  # whatever a model does as it is released, or reset
                if self.group_file is not None:
                    after.callback(self.group_file.put)
                    after.callback(self.group_file.unlink, self.assignable)
                after.callback(self.assignable.drop)
                self._end(after)

    # ---- under the group's lock ----

    def _opened(self) -> None:
        """The file holds the device."""
        file = self.group_file
        if file is None:
            self._start()
            return
        file.link(self.assignable)
        try:
            self._start(file.container.iommu if file.container is not None else None)
        except BaseException:
            file.unlink(self.assignable)
            raise

    def _end(self, after: ExitStack) -> None:
        """The file is closed. ``after`` is run afterwards, the last callback first."""
        self._stop(after)

    def _start(self, iommu: Iommu | None = None) -> None:
        """The client uses the device from now on."""
        found = self.assignable
        with ExitStack() as undo:
            if not found.users:
                found.first_opened()
                undo.callback(found.last_closed)
            self.device.opened(iommu)
            undo.pop_all()
        found.users += 1
        self.started = True

    def _stop(self, after: ExitStack) -> None:
        """The client uses the device no longer."""
        if not self.started:
            return
        self.started = False
        found = self.assignable
        found.users -= 1
        if not found.users:
            after.callback(found.last_closed)
            self.device.released()
