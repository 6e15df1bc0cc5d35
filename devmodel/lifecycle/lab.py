# SPDX-License-Identifier: Apache-2.0
"""The lab: its parents, and the vGPUs that are created from them, started, shut down and removed.

State: everything here changes on the lifecycle (trio) thread, under ``Lab.lock``. Whether a client holds a
device is under its group's lock, which is taken after ``Lab.lock``, never before.
Errors: ``OSError`` with the errno of mdev's ``create`` and ``remove`` in the kernel.
"""

import errno
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Protocol
from uuid import UUID

from devmodel.calls.point import CallPoint
from devmodel.device.tasks import TaskHost
from devmodel.ida import Ida
from devmodel.lifecycle.binding import BindingObserver, DriverCore, MdevDriver, MdevObserver
from devmodel.lifecycle.cards import Cards
from devmodel.lifecycle.change import lifecycle_change
from devmodel.lifecycle.departed import Departed
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.functiontable import FunctionObserver, FunctionTable
from devmodel.lifecycle.hotplug import Hotplug
from devmodel.lifecycle.iommuunit import IommuUnit
from devmodel.lifecycle.later import Later
from devmodel.lifecycle.mdev import Mdev, MdevType
from devmodel.lifecycle.netdev import NetCore, check_names
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.recovery import Recovery, RecoveryObserver
from devmodel.lifecycle.renewal import RenewalObserver, Renewals
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import LabSpec
from devmodel.lifecycle.sriov import SriovCore
from devmodel.lifecycle.units import Units
from devmodel.lifecycle.vendor import VendorFramework
from devmodel.vfio.group import Group
from devmodel.vfio.module import VfioModule

_NONE: Mapping[str, str] = MappingProxyType({})


class Observer(BindingObserver, FunctionObserver, MdevObserver, RecoveryObserver, RenewalObserver, Protocol):
    """Is told of each change when the lab's state is complete. Lifecycle thread, under ``Lab.lock``."""

    def added(self, mdev: Mdev) -> None:
        """``mdev`` exists now. An exception undoes its creation, and :meth:`Lab.create` raises it."""

    def removed(self, mdev: Mdev) -> None:
        """``mdev`` is gone. Nobody else gets its numbers while this runs."""

    def changed(self, mdev: Mdev) -> None:
        """``mdev`` was started or shut down."""


class Lab:
    """All parents and vGPUs. Others may read the tables; only the methods change them."""

    def __init__(self, spec: LabSpec, observer: Observer, calls: CallPoint | None = None) -> None:
        """``calls`` is the lab's call point, a new one unless given.

        Raises ValueError for a spec whose models cannot be made.
        """
        self.spec = spec
        self.calls = calls or CallPoint()
        self.observer = observer
        self.lock = threading.RLock()
        self.groups: dict[int, Group] = {}
        self.mdevs: dict[tuple[UUID, int], Mdev] = {}
        self.by_name: dict[str, Mdev] = {}
        self._instances: dict[UUID, dict[int, Mdev]] = {}
        self._minors, self._vfio_minors = Ida(), Ida()
        self._vgpu_groups = {vgpu.name: vgpu.group for vgpu in spec.vgpus if vgpu.group is not None}
        self.vfio = VfioModule(**dict(spec.modules))  # type: ignore[arg-type] # checked by the reader
        self.drivers = DriverCore(self.lock, observer, self._vfio_minors, self.vfio, self.calls)
        self.mdev_driver = MdevDriver(self.lock, observer, self.calls)
        self.tasks = TaskHost(self.calls)
        self._departed = Departed(self.lock, self.tasks)
        self.vendor = VendorFramework(self.lock, self.drivers, self._vfio_minors, self._departed)
        self._table = FunctionTable(observer, self.drivers.functions, Ida(), self.groups, self._departed)
        table = self._table
        table.released = self.drivers.free_minor
        self.later, self.net = Later(self.tasks), NetCore()
        self.sriov = SriovCore(self.lock, self.drivers, table, self.later)
        self.drivers.releases.append(self._unregister)
        self.hotplug = Hotplug(self.lock, self.drivers, table, self.tasks)
        self.cards = Cards(self.lock, self.drivers, self.hotplug)
        self.parents, self.ports = self.hotplug.parents, self.hotplug.ports
        self.recovery = Recovery(self.lock, self.drivers.functions, observer, self.later)
        self.renewals = Renewals(
            self.lock, self.hotplug, self.drivers, self.vendor, self.sriov, observer, self.tasks
        )
        check_names(spec.all_functions)
        self.hotplug.boot(spec)
        units = Units(spec, self.hotplug.buses, self.drivers.functions.values())
        self.iommu_units = units.all
        for function in self.drivers.functions.values():
            function.unit = units.unit_of(function)
        table.unit_of = units.unit_of

    @lifecycle_change
    def create(
        self,
        type_: MdevType,
        uuid: UUID,
        instance: int = 0,
        name: str | None = None,
        overrides: Mapping[str, str] = _NONE,
    ) -> Mdev:
        """Create a vGPU. Its directory is called ``name``, or as the UUID without one.

        Its share is that of its type, with ``overrides`` (:meth:`Share.changed`). Raises ValueError for
        overrides that cannot be, ``OSError``: EEXIST for a UUID and instance, or a name, that the lab has
        already, ENODEV when the parent is not bound to its host driver or the driver is about to go, ENOSPC
        when it has not enough left.
        After any error the lab is as it was.
        """
        name = str(uuid) if name is None else name
        share = type_.share.changed(type_.spec, overrides) if overrides else type_.share
        with self.lock:
            if (uuid, instance) in self.mdevs or name in self.by_name:
                raise OSError(errno.EEXIST, f"{name} exists already")
            if not type_.parent.has_host_driver or type_.parent.leaving:
                raise OSError(errno.ENODEV, f"{type_.parent.name} is not bound to its host driver")
            if type_.room_for(share) < 1:
                raise OSError(errno.ENOSPC, f"{type_.parent.name} has no room for another {type_.name}")
            with ExitStack() as undo:
                mdev = self._build(type_, uuid, instance, name, share, undo)
                self._enter(mdev)
                undo.callback(self._leave, mdev)
                self.observer.added(mdev)
                undo.pop_all()
            return mdev

    @lifecycle_change
    def remove(self, mdev: Mdev) -> None:
        """Remove a vGPU. ``OSError``: :class:`InUse` while a client holds it, ENODEV when it is gone."""
        with self.lock:
            mdev.retire()
            self._remove(mdev)

    @lifecycle_change
    def surprise_remove(self, mdev: Mdev) -> None:
        """Remove a vGPU at once, although clients may hold it (:meth:`Device.vanish`).

        The lab has its share and numbers back when the last client has let go. Raises ``OSError(ENODEV)``
        when it is gone.
        """
        with self.lock:
            mdev.vanish()
            self._remove(mdev)

    def behind(self, unit: IommuUnit) -> Iterator[PciFunction]:
        """The functions behind an IOMMU unit. Under :attr:`lock`."""
        return (each for each in self.drivers.functions.values() if each.unit is unit)

    def find(self, uuid: UUID, instance: int = 0) -> Mdev:
        """The vGPU with this UUID and instance; ``OSError(ENODEV)`` when there is none. Any thread."""
        with self.lock:
            mdev = self.mdevs.get((uuid, instance))
        if mdev is None:
            raise OSError(errno.ENODEV, f"no vGPU {uuid}:{instance}")
        return mdev

    def named(self, name: str) -> Mdev:
        """The vGPU whose directory has this name; ``OSError(ENODEV)`` when there is none. Any thread."""
        with self.lock:
            mdev = self.by_name.get(name)
        if mdev is None:
            raise OSError(errno.ENODEV, f"no vGPU {name!r}")
        return mdev

    @lifecycle_change
    def start(self, uuid: UUID) -> None:
        """Start the vGPUs of a VM, those with this UUID. ``OSError(ENODEV)`` when there are none."""
        self._set_online(uuid, True)

    @lifecycle_change
    def shutdown(self, uuid: UUID) -> None:
        """Shut the vGPUs of a VM down. ``OSError(ENODEV)`` when there are none."""
        self._set_online(uuid, False)

    def close(self) -> None:
        """Close every device, held or not. For the end of the process."""
        with self.lock:
            for mdev in self.mdevs.values():
                mdev.dispose()
            self.vendor.close()
            self._departed.close()
            self.hotplug.close()

    def _set_online(self, uuid: UUID, online: bool) -> None:
        with self.lock:
            mdevs = self._instances.get(uuid)
            if not mdevs:
                raise OSError(errno.ENODEV, f"no vGPU with UUID {uuid}")
            for mdev in [mdev for mdev in mdevs.values() if mdev.online is not online]:
                mdev.online = online
                self.observer.changed(mdev)

    def _build(
        self, type_: MdevType, uuid: UUID, instance: int, name: str, share: Share, undo: ExitStack
    ) -> Mdev:
        """Make an mdev with numbers and a group of its own. ``undo`` gets the calls that take them back."""
        group = Group(self._table.take_number(self._vgpu_groups.get(name)))
        undo.callback(self._table.give_number, group)
        minor, vfio_minor = self._take(self._minors, undo), self._take(self._vfio_minors, undo)
        mdev = Mdev(uuid, instance, name, type_, share, group, minor, vfio_minor)
        undo.callback(mdev.dispose)
        undo.callback(mdev.withdraw)
        if not self.mdev_driver.takes_new(mdev):
            mdev.unbind()
        return mdev

    def _take(self, numbers: Ida, undo: ExitStack) -> int:
        number = numbers.take()
        undo.callback(numbers.give, number)
        return number

    def _enter(self, mdev: Mdev) -> None:
        mdev.type.charge(mdev)
        self.mdevs[mdev.uuid, mdev.instance] = self.by_name[mdev.name] = mdev
        self._instances.setdefault(mdev.uuid, {})[mdev.instance] = mdev
        self.groups[mdev.group.number] = mdev.group
        mdev.parent.mdevs[mdev.name] = mdev.type.mdevs[mdev.name] = mdev

    def _leave(self, mdev: Mdev) -> None:
        self._forget(mdev)
        mdev.type.refund(mdev)

    def _end(self, mdev: Mdev) -> None:
        """Take back the share and numbers of a vGPU that was removed by surprise: no client holds it."""
        mdev.dispose()
        mdev.type.refund(mdev)
        self._give_numbers(mdev)

    def _forget(self, mdev: Mdev) -> None:
        del self.mdevs[mdev.uuid, mdev.instance], self.by_name[mdev.name]
        del self._instances[mdev.uuid][mdev.instance]
        if not self._instances[mdev.uuid]:
            del self._instances[mdev.uuid]
        del self.groups[mdev.group.number]
        del mdev.parent.mdevs[mdev.name], mdev.type.mdevs[mdev.name]

    def _remove(self, mdev: Mdev) -> None:
        """Remove a vGPU that no client holds, or that has vanished."""
        with ExitStack() as after:
            if mdev.vanished:
                self._forget(mdev)
                after.callback(self._departed.add, mdev, partial(self._end, mdev))
            else:
                mdev.dispose()
                self._leave(mdev)
                after.callback(self._give_numbers, mdev)
            self.observer.removed(mdev)

    def _unregister(self, function: PhysicalFunction) -> None:
        """The host driver of a parent leaves: its vGPUs, of which no client holds one, go first."""
        if function.parent is not None:
            for mdev in tuple(function.parent.mdevs.values()):
                self._remove(mdev)

    def _give_numbers(self, mdev: Mdev) -> None:
        self._table.give_number(mdev.group)
        self._minors.give(mdev.minor)
        self._vfio_minors.give(mdev.vfio_minor)
