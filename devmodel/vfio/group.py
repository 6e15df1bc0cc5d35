# SPDX-License-Identifier: Apache-2.0
"""VFIO groups and open devices: who may do what when, and how long it lives.

State: under ``Group.lock``; called from the device lane. A container's lock is taken after a group's.
Source: <linux/vfio.h> (VFIO_GROUP_GET_STATUS to VFIO_GROUP_GET_DEVICE_FD), Documentation/driver-api/vfio.rst.
"""

import errno
import threading
from collections.abc import Callable
from typing import NamedTuple

from devmodel.vfio.assignable import Assignable
from devmodel.vfio.container import Container, Extension

__all__ = [
    "Assignable",
    "Container",
    "DeviceFile",
    "Extension",
    "Group",
    "GroupFile",
    "GroupStatus",
    "VfioModule",
]


class VfioModule:
    """The parameters of the vfio and vfio-pci modules; changed on the lifecycle thread, read by any."""

    __slots__ = ("noiommu", "sriov")

    def __init__(self) -> None:
        self.noiommu = False
        """enable_unsafe_noiommu_mode"""
        self.sriov = False
        """vfio-pci's enable_sriov"""


class Group:
    """An IOMMU group. It is not viable while one of its devices belongs to a host driver.

    A ``noiommu`` group stands for a device without an IOMMU: whoever uses it needs CAP_SYS_RAWIO.
    """

    __slots__ = ("devices", "lock", "noiommu", "number", "opened", "viable", "watchers")

    def __init__(self, number: int, viable: bool = True, noiommu: bool = False) -> None:
        self.number = number
        self.noiommu = noiommu
        self.viable = viable
        self.lock = threading.RLock()
        self.devices: tuple[Assignable, ...] = ()
        self.opened: GroupFile | None = None
        self.watchers: tuple[Callable[[], None], ...] = ()
        """Called whenever a client has let go of the group or of a device, under :attr:`lock`, on the device
        lane; so they call nothing that waits."""

    @property
    def gone(self) -> bool:
        """Whether its last device has been removed."""
        return not self.devices

    @property
    def emulated(self) -> bool:
        """Whether all its devices are mediated (devmodel.iommu.IommuGroup)."""
        return all(device.emulated_iommu for device in self.devices)

    def open(self, owner: object = None, rawio: bool = False) -> "GroupFile":
        """Open the group for a client that has CAP_SYS_RAWIO or (``rawio`` false) not.

        Raises ``OSError``: ENODEV when it has no devices that stay, EPERM as :meth:`check_rawio`, EBUSY while
        it is open.
        """
        with self.lock:
            if all(device.leaving for device in self.devices):
                raise OSError(errno.ENODEV, f"group {self.number} is gone")
            self.check_rawio(rawio)
            if self.opened is not None:
                raise OSError(errno.EBUSY, f"group {self.number} is open already")
            self.opened = GroupFile(self, owner)
            return self.opened

    def let_go(self) -> None:
        """Tell the watchers. Under :attr:`lock`."""
        for watcher in self.watchers:
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """One more of the watchers. Under :attr:`lock`."""
        self.watchers += (watcher,)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """The opposite of :meth:`watch`. Under :attr:`lock`."""
        self.watchers = tuple(each for each in self.watchers if each is not watcher)

    def check_rawio(self, rawio: bool) -> None:
        """``OSError(EPERM)`` for a noiommu group and a client without CAP_SYS_RAWIO."""
        if self.noiommu and not rawio:
            raise OSError(errno.EPERM, f"group {self.number} has no IOMMU: it takes CAP_SYS_RAWIO")


class GroupStatus(NamedTuple):
    """The flags of VFIO_GROUP_GET_STATUS."""

    viable: bool
    container_set: bool


class GroupFile:
    """The one open of a group; it ends when the file and every device file from it are closed."""

    __slots__ = ("_closed", "_users", "container", "group", "owner")

    def __init__(self, group: Group, owner: object = None) -> None:
        """For :meth:`Group.open`; ``owner`` is whatever the caller wants to find again."""
        self.group = group
        self.owner = owner
        self.container: Container | None = None
        self._users = 1
        self._closed = False

    def status(self) -> GroupStatus:
        """Whether the group can be used, and whether it has a container."""
        with self.group.lock:
            return GroupStatus(self.group.viable, self.container is not None)

    def set_container(self, container: Container | None, rawio: bool = False) -> None:
        """Join ``container``, None for a file that is none.

        Raises ``OSError``: EINVAL when in one already, EBADFD for no container, EPERM when the group is not
        viable or as :meth:`Group.check_rawio`.
        """
        with self.group.lock:
            if self.container is not None:
                raise OSError(errno.EINVAL, "the group has a container already")
            if container is None:
                raise OSError(errno.EBADFD, "not a VFIO container")
            self.group.check_rawio(rawio)
            if not self.group.viable:
                raise OSError(errno.EPERM, f"group {self.group.number} is in use by a host driver")
            container.attach(self.group)
            self.container = container

    def unset_container(self) -> None:
        """Leave the container. ``OSError``: EINVAL when in none, EBUSY while a device is open."""
        with self.group.lock:
            if self.container is None:
                raise OSError(errno.EINVAL, "the group has no container")
            if self._users > 1:
                raise OSError(errno.EBUSY, "a device of the group is open")
            self._leave()

    def get_device(self, name: str, rawio: bool = False) -> Assignable:
        """The device ``name``, to which a VF token may be added as vfio-pci takes it.

        Raises ``OSError``: ENODEV if there is none, EINVAL and EACCES for the token, EINVAL without container
        and IOMMU, EPERM as :meth:`Group.check_rawio`.
        """
        with self.group.lock:
            found = next((each for each in self.group.devices if each.answers_to(name)), None)
            if found is None:
                raise OSError(errno.ENODEV, f"group {self.group.number} has no device {name!r}")
            if self.container is None or self.container.iommu is None:
                raise OSError(errno.EINVAL, "the group has no container with an IOMMU")
            self.group.check_rawio(rawio)
            return found

    def open_device(self, name: str, rawio: bool = False) -> "DeviceFile":
        """Open the device ``name``; ``OSError`` as :meth:`get_device`."""
        with self.group.lock:
            return DeviceFile(self.get_device(name, rawio), self)

    def close(self) -> None:
        """The file is closed; its device files keep group and container as they are. May be called twice."""
        with self.group.lock:
            if not self._closed:
                self._closed = True
                self.put()

    def get(self) -> None:
        """Count a device file; for :class:`DeviceFile`, under the group's lock."""
        self._users += 1

    def put(self) -> None:
        """Uncount a user; the last one ends the group's use. As :meth:`get`."""
        self._users -= 1
        if not self._users:
            self._leave()
            self.group.opened = None
            self.group.let_go()

    def _leave(self) -> None:
        if self.container is not None:
            self.container.detach(self.group)
            self.container = None


class DeviceFile:
    """One open of a device, through its group or (``group_file`` None) through its own character device."""

    __slots__ = ("_closed", "_held", "assignable", "device", "group_file")

    def __init__(
        self, assignable: Assignable, group_file: GroupFile | None = None, held: bool = True
    ) -> None:
        """``OSError(ENODEV)`` when the device is gone. Otherwise it stays until :meth:`close`, from now on or
        (``held`` false) from :meth:`claim` on.
        """
        self.assignable = assignable
        self.group_file = group_file
        self._held = self._closed = False
        if held:
            self.claim()
        else:
            self.device = assignable.device

    def claim(self) -> None:
        """Use the device. ``OSError``: ENODEV when it is gone, EINVAL when its group's file was closed."""
        with self.assignable.group.lock:
            if self._closed or self._held:
                raise OSError(errno.EINVAL, "the device file is closed, or in use already")
            if self.group_file is not None and self.group_file.group.opened is not self.group_file:
                raise OSError(errno.EINVAL, "the group's file is closed")
            self._hold()
            self._held = True
            if self.group_file is not None:
                self.group_file.get()

    def _hold(self) -> None:
        first = self.assignable.hold()
        try:
            self.device = self.assignable.device
            if first:
                self.assignable.first_opened()
            container = self.group_file.container if self.group_file is not None else None
            self.device.opened(container.iommu if container is not None else None)
        except BaseException:
            self.assignable.drop()
            raise

    def close(self) -> None:
        """Let go of the device and of the group's file. May be called twice."""
        with self.assignable.group.lock:
            held, self._held, self._closed = self._held, False, True
            if held and self.assignable.drop():
                self.device.released()
            if held and self.group_file is not None:
                self.group_file.put()
