# SPDX-License-Identifier: Apache-2.0
"""The lifecycle core of a lab: creating, starting, stopping and removing vGPUs, whatever face asked for it.

State: everything here changes on the lifecycle (trio) thread under ``Lab.lock``. Whether a device is
held open is under its group's lock, which is taken after ``Lab.lock``, never before.
Errors: ``OSError`` with the errno of mdev's ``create`` and ``remove`` in the kernel.
"""

import errno
import threading
from contextlib import ExitStack
from typing import Protocol
from uuid import UUID

from devmodel.binding import BindingObserver, DriverCore
from devmodel.names import CreateLine, DestroyLine, parse_create_line, parse_destroy_line, parse_uuid
from devmodel.numbers import Numbers
from devmodel.parent import Mdev, MdevType, Parent, PhysicalFunction
from devmodel.pci import Aperture
from devmodel.spec import LabSpec, ParentSpec, TypeSpec
from devmodel.tasks import TaskHost
from devmodel.vfio import Group, VfioModule

__all__ = [
    "CreateLine",
    "DestroyLine",
    "Lab",
    "LabSpec",
    "Mdev",
    "MdevType",
    "Observer",
    "Parent",
    "ParentSpec",
    "PhysicalFunction",
    "TypeSpec",
    "parse_create_line",
    "parse_destroy_line",
    "parse_uuid",
]


class Observer(BindingObserver, Protocol):
    """Told of every change, on the lifecycle thread under ``Lab.lock``, once the lab's state is complete."""

    def added(self, mdev: Mdev) -> None:
        """``mdev`` exists now. An exception undoes the creation and reaches who asked for it."""

    def removed(self, mdev: Mdev) -> None:
        """``mdev`` is gone; its numbers are still its own while this runs."""

    def changed(self, mdev: Mdev) -> None:
        """``mdev`` was started or shut down."""


class Lab:
    """All parents and vGPUs. The tables are for reading by others; only the methods change them."""

    def __init__(self, spec: LabSpec, observer: Observer) -> None:
        """Raises ValueError for a spec whose models cannot be made (vfsfuse.labfile says why and where)."""
        self.spec = spec
        self.observer = observer
        self.lock = threading.RLock()
        self.groups: dict[int, Group] = {}
        self.mdevs: dict[tuple[UUID, int], Mdev] = {}
        self.by_name: dict[str, Mdev] = {}
        self._instances: dict[UUID, dict[int, Mdev]] = {}
        self._group_numbers, self._minors, self._vfio_minors = Numbers(), Numbers(), Numbers()
        self.vfio = VfioModule()
        self.drivers = DriverCore(self.lock, observer, self._vfio_minors, self.vfio)
        self.tasks = TaskHost()
        self._buses: dict[str, list[PhysicalFunction]] = {}
        self._aperture = Aperture()
        self.parents: dict[str, Parent] = {}
        for parent in spec.parents:
            self.parents[parent.name] = Parent(parent, self._make_function(parent), self.tasks)

    def create(self, type_: MdevType, uuid: UUID, instance: int = 0, name: str | None = None) -> Mdev:
        """Create a vGPU; ``name`` is its directory's, the UUID unless given.

        Raises ``OSError``: EEXIST for a UUID and instance, or a name, that the lab has already, ENODEV when
        the parent lost its host driver, ENOSPC when it has not enough left. Whatever goes wrong, nothing of
        it stays.
        """
        name = str(uuid) if name is None else name
        with self.lock:
            if (uuid, instance) in self.mdevs or name in self.by_name:
                raise OSError(errno.EEXIST, f"{name} exists already")
            if not type_.parent.has_host_driver:
                raise OSError(errno.ENODEV, f"{type_.parent.name} is not bound to its host driver")
            if type_.available_instances < 1:
                raise OSError(errno.ENOSPC, f"{type_.parent.name} has no room for another {type_.name}")
            with ExitStack() as undo:
                mdev = self._build(type_, uuid, instance, name, undo)
                self._enter(mdev)
                undo.callback(self._leave, mdev)
                self.observer.added(mdev)
                undo.pop_all()
            return mdev

    def remove(self, mdev: Mdev) -> None:
        """Remove a vGPU. ``OSError``: EBUSY while a client has it or its group open, ENODEV if gone."""
        with self.lock:
            mdev.retire()
            mdev.dispose()
            self._leave(mdev)
            with ExitStack() as after:
                after.callback(self._give_numbers, mdev)
                self.observer.removed(mdev)

    def find(self, uuid: UUID, instance: int = 0) -> Mdev:
        """The vGPU with this UUID and instance, or ``OSError(ENODEV)``."""
        with self.lock:
            mdev = self.mdevs.get((uuid, instance))
        if mdev is None:
            raise OSError(errno.ENODEV, f"no vGPU {uuid}:{instance}")
        return mdev

    def start(self, uuid: UUID) -> None:
        """Start all vGPUs of a VM, those with this UUID; ``OSError(ENODEV)`` when there are none."""
        self._set_online(uuid, True)

    def shutdown(self, uuid: UUID) -> None:
        """Shut down all vGPUs of a VM; ``OSError(ENODEV)`` when there are none."""
        self._set_online(uuid, False)

    def close(self) -> None:
        """Close every device, held or not; for the end of the process."""
        with self.lock:
            for mdev in self.mdevs.values():
                mdev.dispose()
            for parent in self.parents.values():
                if parent.device is not None:
                    parent.device.close()

    def _set_online(self, uuid: UUID, online: bool) -> None:
        with self.lock:
            mdevs = self._instances.get(uuid)
            if not mdevs:
                raise OSError(errno.ENODEV, f"no vGPU with UUID {uuid}")
            for mdev in [mdev for mdev in mdevs.values() if mdev.online is not online]:
                mdev.online = online
                self.observer.changed(mdev)

    def _make_function(self, spec: ParentSpec) -> PhysicalFunction | None:
        if spec.kind != "gpu":
            return None
        group = Group(self._group_numbers.take(), noiommu=not spec.iommu)
        self.groups[group.number] = group
        bus = self._buses.setdefault(spec.name.rsplit(":", 1)[0], [])
        return PhysicalFunction(spec, group, self._aperture, bus, self.tasks)

    def _build(self, type_: MdevType, uuid: UUID, instance: int, name: str, undo: ExitStack) -> Mdev:
        """Make an mdev with numbers and a group of its own; ``undo`` gets what takes them back."""
        group = Group(self._take(self._group_numbers, undo))
        minor, vfio_minor = self._take(self._minors, undo), self._take(self._vfio_minors, undo)
        mdev = Mdev(uuid, instance, name, type_, group, minor, vfio_minor)
        undo.callback(mdev.dispose)
        undo.callback(mdev.withdraw)
        return mdev

    def _take(self, numbers: Numbers, undo: ExitStack) -> int:
        number = numbers.take()
        undo.callback(numbers.give, number)
        return number

    def _enter(self, mdev: Mdev) -> None:
        mdev.parent.charge(mdev.type.spec)
        self.mdevs[mdev.uuid, mdev.instance] = self.by_name[mdev.name] = mdev
        self._instances.setdefault(mdev.uuid, {})[mdev.instance] = mdev
        self.groups[mdev.group.number] = mdev.group
        mdev.parent.mdevs[mdev.name] = mdev.type.mdevs[mdev.name] = mdev

    def _leave(self, mdev: Mdev) -> None:
        del self.mdevs[mdev.uuid, mdev.instance], self.by_name[mdev.name]
        del self._instances[mdev.uuid][mdev.instance]
        if not self._instances[mdev.uuid]:
            del self._instances[mdev.uuid]
        del self.groups[mdev.group.number]
        del mdev.parent.mdevs[mdev.name], mdev.type.mdevs[mdev.name]
        mdev.parent.refund(mdev.type.spec)

    def _give_numbers(self, mdev: Mdev) -> None:
        self._group_numbers.give(mdev.group.number)
        self._minors.give(mdev.minor)
        self._vfio_minors.give(mdev.vfio_minor)
