# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups, and the devices in them.

A client that has a device open keeps it. One that has only its group open does not: when the last device
leaves the group, the open file is revoked, and a device that joins later has a group file of its own.

A group has one owner at a time: the host drivers of its members that do DMA, a container, or an iommufd.

Threads: the device lane opens and closes; the trio thread removes devices. State is under ``Group.lock``.
Source: <linux/vfio.h>, Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

from devmodel.device.base import DriverAccess
from devmodel.iommu.driver import Iommu
from devmodel.iommufd.context import Context
from devmodel.iommufd.device import BoundDevice
from devmodel.irq.kinds import PciIrq
from devmodel.vfio.bindable import BindableDevice, OpenCdev
from devmodel.vfio.lingering import (
    PATIENCE,
    Held,
    InUse,
    LastClient,
    Lingering,
    Renewing,
    check_clients,
    check_looks,
)


class DeviceLink(Protocol):
    """What connects an open device of a group to an iommufd (:class:`devmodel.vfio.compat.CompatLink`)."""

    @property
    def bound(self) -> BoundDevice:
        """The device in the context that it is bound to."""

    def attach(self) -> None:
        """Have the device reach memory, unless it does so already. Called without a lock. Waits for clients.
        Raises ``OSError``."""

    def end(self) -> None:
        """The last file of the device is closed. Under the group's lock."""


class GroupContainer(Protocol):
    """What a group joins: a container, or an iommufd (:class:`devmodel.vfio.compat.CompatContainer`)."""

    @property
    def claims(self) -> bool:
        """Whether the group belongs to it as a whole: only a viable group can join, and it leaves only when
        no device is open. Otherwise that is decided as each device is opened."""

    @property
    def iommu(self) -> Iommu | None:
        """What connects the devices that are opened. None when that is a :class:`DeviceLink`."""

    def attach(self, group: Group) -> None:
        """Add a group. Called without a lock. Waits for clients. Raises ``OSError``."""

    def detach(self, group: Group) -> None:
        """Remove a group. Under the group's lock."""

    def check_ready(self) -> None:
        """Raises ``OSError(EINVAL)`` when devices cannot be opened yet. Under the group's lock."""

    def link(self, device: Assignable) -> DeviceLink | None:
        """A device of a group is opened for the first time. Under the group's lock. Raises ``OSError``."""


class OpenGroup(ABC):
    """The open file of a group, as the group and its devices see it. ``client`` used it last, ``container``
    is what it has joined, ``links`` are those of open devices."""

    __slots__ = ("client", "container", "links")
    client: LastClient
    container: GroupContainer | None
    links: dict[Assignable, DeviceLink]

    @property
    @abstractmethod
    def devices(self) -> int:
        """How many device files there are. Under the group's lock."""

    @abstractmethod
    def revoke(self) -> None:
        """Leave the container, and answer ENODEV from then on. Under the group's lock."""


class DmaOwned(OSError):
    """EBUSY because a client has the IOMMU group of a function that a host driver is about to take."""


class Group(Held):
    """An IOMMU group. Its ``devices`` are those members that VFIO drives.

    ``host_users`` counts the members whose host driver does DMA: with one of those the group is not viable.
    ``joining`` is the container of a SET_CONTAINER that is under way, which keeps the devices as an open
    device does. ``holders`` counts the holders of all its devices, also of those that have left.
    A ``noiommu`` group stands for a device without an IOMMU. Its users need CAP_SYS_RAWIO.
    """

    __slots__ = ("devices", "holders", "host_users", "joining", "noiommu", "number", "opened")

    def __init__(self, number: int, noiommu: bool = False) -> None:
        super().__init__()
        self.number = number
        self.noiommu = noiommu
        self.devices: tuple[Assignable, ...] = ()
        self.holders = self.host_users = 0
        self.opened: OpenGroup | None = None
        self.joining: GroupContainer | None = None

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

    @property
    def leaving(self) -> bool:
        """Whether it has no device, or only devices that are being removed."""
        return all(device.leaving for device in self.devices)

    @property
    def held(self) -> bool:
        """Whether a client holds one of its devices, or is about to put it into a container. Under
        :attr:`lock`."""
        return bool(self.holders) or self.joining is not None

    def end_if_gone(self) -> None:
        """Revoke the open file of the group if the last device has left, and no client holds one. Under
        :attr:`lock`."""
        if not self.gone or self.held:
            return
        file, self.opened = self.opened, None
        if file is not None:
            file.revoke()
            self.let_go()

    # ---- host drivers ----

    @property
    def viable(self) -> bool:
        """Whether no host driver of a member does DMA."""
        return not self.host_users

    @property
    def claimed(self) -> bool:
        """Whether host drivers, a container or an iommufd use its IOMMU. Under :attr:`lock`."""
        return bool(self.host_users) or self.domain is not None

    def begin_host_use(self) -> None:
        """A host driver that does DMA is about to take a member. Raises :class:`DmaOwned` while a container
        or an iommufd has the group."""
        with self.lock:
            if self.domain is not None:
                raise DmaOwned(errno.EBUSY, f"a client has {self}")
            self.host_users += 1

    def end_host_use(self) -> None:
        """Such a driver has left a member."""
        with self.lock:
            self.host_users -= 1

    def check_rawio(self, rawio: bool) -> None:
        """``OSError(EPERM)`` for a noiommu group and a client without CAP_SYS_RAWIO."""
        if self.noiommu and not rawio:
            raise OSError(errno.EPERM, f"group {self.number} has no IOMMU: it takes CAP_SYS_RAWIO")

    # ---- iommufd: under the lock ----

    @property
    def binding(self) -> OpenCdev | None:
        """A file by which one of its devices is bound to an iommufd, or about to be."""
        return next((each.binding for each in self.devices if each.binding is not None), None)

    @property
    def bound_device(self) -> BoundDevice | None:
        """What one of its devices is in the context that the group belongs to."""
        bound = (each.bound_device for each in self.devices)
        return next((each for each in bound if each is not None), None)

    @property
    def owner(self) -> Context | None:
        """The context that devices of the group are bound to."""
        bound = self.bound_device
        return None if bound is None else bound.context

    @property
    def domain(self) -> object:
        """What translates the DMA of its devices: a container or a context. None when VFIO does not use
        it."""
        opened, container = self.opened, self.joining
        if opened is not None and container is None:
            container = opened.container
        return container if container is not None and container.claims else self.owner

    def check_owner(self, context: Context) -> None:
        """Raise ``OSError(EPERM)`` unless all devices of the group are free, or bound to ``context``."""
        if not self.viable or self.owner not in (None, context):
            raise OSError(errno.EPERM, f"{self} belongs to somebody else")


class Assignable(BindableDevice):
    """A device of an IOMMU group, as VFIO sees it. Clients hold it open; it retires only when none does.

    ``open_count`` counts their files, also those of the device's own character device that are not bound.
    """

    __slots__ = ("gone", "group", "leaving", "name", "open_count", "renewal")
    vfio_minor: int | None
    """The number in vfio<N>, None while no VFIO driver has the device."""

    def __init__(self, name: str, group: Group, joined: bool = True) -> None:
        """Join ``group`` under ``name``, which is unique there. With ``joined`` false, :meth:`join` does so
        later."""
        super().__init__()
        self.name = name
        self.group = group
        self.open_count = 0
        self.leaving = 0
        """How many threads wait to remove it. Nobody can open it meanwhile."""
        self.renewal = False
        """Whether it gets another model as soon as no client holds it. An open waits for that then."""
        self.gone = True
        if joined:
            self.join()

    def __str__(self) -> str:
        return self.name

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
    def bound_device(self) -> BoundDevice | None:
        opened = self.group.opened
        link = None if opened is None else opened.links.get(self)
        return super().bound_device if link is None else link.bound

    @property
    def access(self) -> DriverAccess:
        """What reads and writes of its clients go to: the device, or what its driver puts before it."""
        return self.device

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` in GROUP_GET_DEVICE_FD means this device. Raises ``OSError`` when the client must
        not have it.

        Called under the group's lock.
        """
        return name == self.name

    def hold(self) -> None:
        """Count a holder, which keeps the device from being removed.

        Raises ``OSError(ENODEV)`` when the device is gone or is being removed, :class:`Renewing` while it
        gets another model.
        """
        with self.group.lock:
            if self.gone or self.leaving:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            self._check_renewal()
            self.open_count += 1
            self.group.holders += 1

    def await_renewal(self, may_wait: bool) -> None:
        """Wait while the device gets another model, PATIENCE at most. Raises :class:`Renewing` then, and
        :class:`MustWait` on a thread that must not wait."""
        if self.renewal:
            self.group.patiently(self._check_renewal, may_wait)

    def _check_renewal(self) -> None:
        if self.renewal and not self.open_count:
            raise Renewing(self.group, PATIENCE)

    def drop(self) -> None:
        """The opposite of :meth:`hold`."""
        with self.group.lock:
            self.open_count -= 1
            self.group.holders -= 1
            if not self.open_count:
                self.group.end_if_gone()
                self.group.let_go()

    @property
    def held(self) -> bool:
        """Whether a client has it open, or is about to put its group into a container. Under the group's
        lock."""
        return bool(self.open_count) or self.group.joining is not None

    def first_opened(self) -> None:
        """A hook for subclasses: the first client uses the device from now on."""
        return

    def last_closed(self) -> None:
        """A hook for subclasses: no client uses the device any more."""
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
            file, by_group = self.group.opened, opened - len(self.cdevs)
            clients = [each.client for each in self.cdevs]
            if file is not None and by_group <= file.devices:
                check_clients(self.group, [*clients, file.client])
            elif not by_group:
                check_clients(self.group, clients)
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
            self.group.end_if_gone()

    def vanish(self) -> None:
        """Be gone at once, although clients may hold it (:meth:`Device.vanish` says what they see)."""
        with self.group.lock:
            self.withdraw()
            self.group.let_go()  # who waits for its removal need not wait any longer
        self.device.vanish()


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
