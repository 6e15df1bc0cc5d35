# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups, the devices in them, and the open files of groups.

A client that has a device open keeps it. One that has only its group open does not: when the last device
leaves the group, the open file is revoked, and a device that joins later has a group file of its own.

Threads: the device lane opens and closes; the trio thread removes devices. State is under ``Group.lock``; a
container's lock is taken after it.
Source: <linux/vfio.h> (VFIO_GROUP_GET_STATUS to VFIO_GROUP_GET_DEVICE_FD), Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import ClassVar, NamedTuple

from devmodel.device.base import Device, DriverAccess
from devmodel.irq.kinds import PciIrq
from devmodel.vfio.container import Container
from devmodel.vfio.lingering import Held, InUse, LastClient, Lingering, check_looks, lives


class Group(Held):
    """An IOMMU group. It is not viable while one of its devices belongs to a host driver.

    A ``noiommu`` group stands for a device without an IOMMU. Its users need CAP_SYS_RAWIO.
    """

    __slots__ = ("devices", "joining", "noiommu", "number", "opened", "viable")

    def __init__(self, number: int, viable: bool = True, noiommu: bool = False) -> None:
        super().__init__()
        self.number = number
        self.noiommu = noiommu
        self.viable = viable
        self.devices: tuple[Assignable, ...] = ()
        self.opened: GroupFile | None = None
        self.joining = False
        """Whether a SET_CONTAINER is under way, which keeps the devices as an open device does."""

    def __str__(self) -> str:
        return f"group {self.number}"

    @property
    def gone(self) -> bool:
        """Whether its last device has been removed."""
        return not self.devices

    @property
    def emulated(self) -> bool:
        """Whether all its devices are mediated (devmodel.iommu.api.IommuGroup)."""
        return all(device.emulated_iommu for device in self.devices)

    def open(
        self, client_ended: Callable[[], bool] = lives, rawio: bool = False, may_wait: bool = False
    ) -> GroupFile:
        """Open the group for a client. ``client_ended`` tells later whether its process has ended, without
        waiting. ``rawio`` is whether it has CAP_SYS_RAWIO.

        Raises ``OSError``: ENODEV when the group has no device, or only devices that are being removed; EPERM
        as :meth:`check_rawio`; EBUSY while it is open. Waits, or raises :class:`MustWait`, as
        :meth:`patiently`.
        """

        def attempt() -> GroupFile:
            if self.leaving:
                raise OSError(errno.ENODEV, f"group {self.number} is gone")
            self.check_rawio(rawio)
            if self.opened is not None:
                self.opened.client.check()
                raise OSError(errno.EBUSY, f"group {self.number} is open already")
            self.opened = GroupFile(self, client_ended)
            return self.opened

        return self.patiently(attempt, may_wait)

    @property
    def leaving(self) -> bool:
        """Whether it has no device, or only devices that are being removed."""
        return all(device.leaving for device in self.devices)

    def revoke(self) -> None:
        """Revoke the open file of the group, if there is one: the last device has left, and no client holds
        it. Under :attr:`lock`."""
        file, self.opened = self.opened, None
        if file is not None:
            file.revoke()
            self.let_go()

    def check_rawio(self, rawio: bool) -> None:
        """``OSError(EPERM)`` for a noiommu group and a client without CAP_SYS_RAWIO."""
        if self.noiommu and not rawio:
            raise OSError(errno.EPERM, f"group {self.number} has no IOMMU: it takes CAP_SYS_RAWIO")


class Assignable(ABC):
    """A device of an IOMMU group, as VFIO sees it. Clients hold it open; it retires only when none does."""

    __slots__ = ("gone", "group", "leaving", "name", "open_count")
    vfio_minor: int | None
    """The number in vfio<N>, None while no VFIO driver has the device."""
    emulated_iommu: ClassVar[bool] = True
    """Whether it is mediated: it reaches memory through its driver, not by DMA of its own."""

    def __init__(self, name: str, group: Group, joined: bool = True) -> None:
        """Join ``group`` under ``name``, which is unique there. With ``joined`` false, :meth:`join` does so
        later."""
        self.name = name
        self.group = group
        self.open_count = 0
        self.leaving = 0
        """How many threads wait to remove it. Nobody can open it meanwhile."""
        self.gone = True
        if joined:
            self.join()

    def join(self) -> None:
        """Become a device that clients can open through the group."""
        with self.group.lock:
            self.gone = False
            self.group.devices += (self,)

    @property
    def resettable(self) -> bool:
        """Whether DEVICE_RESET resets it."""
        return self.device.resettable

    @property
    def access(self) -> DriverAccess:
        """What reads and writes of its clients go to: the device, or what its driver puts before it."""
        return self.device

    @property
    @abstractmethod
    def device(self) -> Device:
        """The device itself, made at the first call. Raises ``OSError(ENODEV)`` when it is gone."""

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` in GROUP_GET_DEVICE_FD means this device. Raises ``OSError`` when the client must
        not have it.

        Called under the group's lock.
        """
        return name == self.name

    def check_direct(self) -> None:
        """Raise ``OSError`` unless a client may open the device by its own character device, where it cannot
        give a token."""
        return

    def hold(self) -> bool:
        """Count a holder, which keeps the device from being removed. True for the first one.

        Raises ``OSError(ENODEV)`` when the device is gone or is being removed.
        """
        with self.group.lock:
            if self.gone or self.leaving:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            self.open_count += 1
            return self.open_count == 1

    def drop(self) -> bool:
        """The opposite of :meth:`hold`. True for the last holder."""
        with self.group.lock:
            self.open_count -= 1
            if self.open_count:
                return False
            self._end_group()
            self.group.let_go()
            return True

    @property
    def held(self) -> bool:
        """Whether a client has it open, or is about to put its group into a container. Under the group's
        lock."""
        return bool(self.open_count) or self.group.joining

    def first_opened(self) -> None:
        """A hook for subclasses: the first client has the device open now."""
        return

    def last_closed(self) -> None:
        """A hook for subclasses: the last client has closed the device."""
        return

    def retire(self) -> None:
        """Leave the group.

        Raises ``OSError``: ENODEV if it is gone, :class:`InUse` while it is held. A client that holds it is
        asked to close it (the REQ interrupt), as vfio-pci does. One that has ended is not: then the error is
        :class:`Lingering`.
        """
        self._leave_by(self.withdraw)

    def begin_leaving(self) -> None:
        """Let no client open it any more, until :meth:`stay` or :meth:`withdraw`. Raises ``OSError`` as
        :meth:`retire`."""
        self._leave_by(self._begin)

    def _begin(self) -> None:
        self.leaving += 1

    def _leave_by(self, leave: Callable[[], None]) -> None:
        with self.group.lock:
            if self.gone:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            opened = self.open_count
            if not self.held:
                leave()
                return
            file = self.group.opened
            if file is not None and opened <= file.devices:
                file.client.check()
            check_looks(self.group)
        if opened:
            self.device.irq.trigger(PciIrq.REQ)
        raise InUse(errno.EBUSY, f"{self.name} is in use")

    def stay(self) -> None:
        """Undo a :meth:`begin_leaving`."""
        with self.group.lock:
            self.leaving -= 1

    def withdraw(self) -> None:
        """Leave the group. It is the caller who knows that no client holds the device, or that it is gone
        whether one does or not."""
        with self.group.lock:
            self.gone = True
            devices = self.group.devices
            self.group.devices = (
                () if devices == (self,) else tuple(each for each in devices if each is not self)
            )
            self._end_group()

    def _end_group(self) -> None:
        """Revoke the group's open file if this was the last device and no client holds it."""
        if self.group.gone and not self.held:
            self.group.revoke()


def retire_all(devices: Sequence[Assignable]) -> None:
    """Have all devices leave their groups, or none.

    Raises ``OSError`` as :meth:`Assignable.begin_leaving`: every client that holds one of them is asked to
    let go, and only when all of those have ended it is :class:`Lingering`.
    """
    refused: list[OSError] = []
    with ExitStack() as undo:
        for device in devices:
            try:
                device.begin_leaving()
            except OSError as error:
                refused.append(error)
            else:
                undo.callback(device.stay)
        if refused:
            raise next((each for each in refused if not isinstance(each, Lingering)), refused[0])
        for device in devices:
            device.withdraw()


class GroupStatus(NamedTuple):
    """The flags of VFIO_GROUP_GET_STATUS."""

    viable: bool
    container_set: bool


class GroupFile:
    """The only open of a group. It ends when the file and every device file from it are closed.

    It is ``revoked`` when the last device of the group has left and is closed. A revoked file is in no
    container. It stays of no use when the group gets a device again.
    """

    __slots__ = ("_closed", "_users", "client", "container", "group", "revoked")

    def __init__(self, group: Group, client_ended: Callable[[], bool]) -> None:
        """For :meth:`Group.open`."""
        self.group = group
        self.client = LastClient(group, client_ended)
        self.container: Container | None = None
        self._users = 1
        self._closed = self.revoked = False

    def used_by(self, client_ended: Callable[[], bool]) -> None:
        """Another client uses the file now. ``client_ended`` is as that of :meth:`Group.open`."""
        with self.group.lock:
            self.client = LastClient(self.group, client_ended)

    @property
    def devices(self) -> int:
        """How many device files there are. Under the group's lock."""
        return self._users - (not self._closed) - self.group.joining

    def status(self) -> GroupStatus:
        """Whether the group can be used, and whether it has a container. ``OSError(ENODEV)`` once it is
        :attr:`revoked`."""
        with self.group.lock:
            self._check_group()
            return GroupStatus(self.group.viable, self.container is not None)

    def set_container(self, container: Container | None, rawio: bool = False) -> None:
        """Join ``container``; None stands for a file that is no container. It may wait for clients, as
        :meth:`Container.attach`, so a thread that may wait calls it.

        Raises ``OSError``: EINVAL when the group has a container already or is joining one, ENODEV once the
        file is :attr:`revoked` or while all devices of the group are being removed, EBADFD for None, EPERM
        when the group is not viable or as :meth:`Group.check_rawio`, otherwise as :meth:`Container.attach`.
        """
        with self.group.lock:
            if self.container is not None or self.group.joining:
                raise OSError(errno.EINVAL, "the group has a container already")
            self._check_group()
            if self.group.leaving:
                raise OSError(errno.ENODEV, f"group {self.group.number} is about to lose its devices")
            if container is None:
                raise OSError(errno.EBADFD, "not a VFIO container")
            self.group.check_rawio(rawio)
            if not self.group.viable:
                raise OSError(errno.EPERM, f"group {self.group.number} is in use by a host driver")
            self.group.joining = True
            self.get()
        joined: Container | None = None
        try:
            container.attach(self.group)
            joined = container
        finally:
            with self.group.lock:
                self.container, self.group.joining = joined, False
                if self.group.gone and not self.devices:
                    self.group.revoke()
                self.put()  # the file may have been closed meanwhile
                self.group.let_go()

    def unset_container(self, may_wait: bool = False) -> None:
        """Leave the container. Raises ``OSError``: EINVAL without a container, EBUSY while a device is open
        or the group is joining the container. Waits as :meth:`Group.patiently`."""

        def attempt() -> None:
            if self.container is None and not self.group.joining:
                raise OSError(errno.EINVAL, "the group has no container")
            if self._users > 1:
                self.client.check()
                raise OSError(errno.EBUSY, "a device of the group is open, or the group is joining")
            self._leave()

        self.group.patiently(attempt, may_wait)

    def get_device(self, name: str, rawio: bool = False) -> Assignable:
        """The device ``name``. The name may include a VF token, as for vfio-pci.

        Raises ``OSError``: ENODEV if there is none, also once the file is :attr:`revoked`; EINVAL and EACCES
        for the token, EINVAL without container and IOMMU, EPERM as :meth:`Group.check_rawio`.
        """
        with self.group.lock:
            self._check_group()
            found = next((each for each in self.group.devices if each.answers_to(name)), None)
            if found is None:
                raise OSError(errno.ENODEV, f"group {self.group.number} has no device {name!r}")
            if self.container is None or self.container.iommu is None:
                raise OSError(errno.EINVAL, "the group has no container with an IOMMU")
            self.group.check_rawio(rawio)
            return found

    def close(self) -> None:
        """The file is closed. Its device files keep the group in its container. May be called twice."""
        with self.group.lock:
            if not self._closed:
                self._closed = True
                self.put()

    def get(self) -> None:
        """Count a device file, or a call under way. For :class:`DeviceFile`, under the group's lock."""
        self._users += 1

    def put(self) -> None:
        """Uncount a file. The last one ends the use of the group. Called as :meth:`get`."""
        self._users -= 1
        if not self._users and not self.revoked:
            self._leave()
            self.group.opened = None
            self.group.let_go()

    def revoke(self) -> None:
        """Leave the container, and answer ENODEV from then on. Under the group's lock."""
        self.revoked = True
        self._leave()

    def _check_group(self) -> None:
        if self.revoked:
            raise OSError(errno.ENODEV, f"group {self.group.number} has lost its devices")

    def _leave(self) -> None:
        if self.container is not None:
            self.container.detach(self.group)
            self.container = None
