# SPDX-License-Identifier: Apache-2.0
"""Mediated devices, the types they are created from, and the parents that offer those types.

A parent has memory and slots; each device takes a share of them. A parent of this module is virtual; one that
is a PCI function is a :class:`devmodel.lifecycle.physical.PhysicalParent`.

State: the lifecycle thread's, under ``Lab.lock``. Two things are under the lock of a device's group instead:
whether a client holds the device, and the making of its model. Source: <linux/mdev.h> (struct mdev_parent,
mdev_type and mdev_device), Documentation/driver-api/vfio-mediated-device.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType
from uuid import UUID

from devmodel.device.base import Device
from devmodel.device.pci import PciDevice
from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import ParentSpec, TypeSpec
from devmodel.lifecycle.vgpuplaces import VgpuPlaces
from devmodel.vfio.group import Assignable, Group

MANY_INSTANCES = 2**31 - 1
"""What ``available_instances`` counts to when nothing bounds a type."""


class Parent:
    """A device that mediated devices are made of.

    ``places`` has the places of its vGPUs, None if they have none.
    """

    __slots__ = ("host", "mdevs", "memory_free", "name", "places", "slots_free", "spec", "types")

    def __init__(self, spec: ParentSpec, host: TaskHost | None = None) -> None:
        """``host`` runs the tasks of its devices."""
        self.spec = spec
        self.host = host
        self.name = spec.name
        self.memory_free = spec.memory
        """Bytes that no device has taken."""
        self.slots_free = spec.slots
        """Slots that no device has taken, None without limit."""
        self.types: Mapping[str, MdevType] = MappingProxyType(
            {type_.name: MdevType(type_, self) for type_ in spec.types}
        )
        self.mdevs: dict[str, Mdev] = {}
        self.places = None if spec.placement is None else VgpuPlaces(spec.placement, spec.slots)

    @property
    def device(self) -> PciDevice | None:
        """The PCI device of a physical GPU, None for a virtual parent."""
        return None

    @property
    def vgpus(self) -> int:
        """How many vGPUs there are."""
        return len(self.mdevs)

    @property
    def has_host_driver(self) -> bool:
        """Whether the driver that shares it among vGPUs is bound; a virtual parent's always is."""
        return True

    @property
    def leaving(self) -> bool:
        """Whether that driver is about to go, and only waits for clients."""
        return False

    def room_for(self, share: Share) -> int:
        """How many such shares are left, exactly."""
        limits = [MANY_INSTANCES]
        if share.memory:
            limits.append(self.memory_free // share.memory)
        if self.slots_free is not None and share.slots:
            limits.append(self.slots_free // share.slots)
        return min(limits)

    def charge(self, share: Share) -> None:
        """Take a device's share. The caller has checked :meth:`room_for`."""
        self.memory_free -= share.memory
        if self.slots_free is not None:
            self.slots_free -= share.slots

    def refund(self, share: Share) -> None:
        """Give a share back."""
        self.memory_free += share.memory
        if self.slots_free is not None:
            self.slots_free += share.slots


class MdevType:
    """A type that a parent offers, and the devices of it that exist.

    ``share`` is what a device of the type takes, unless the request that creates it asks for another.
    ``taken`` counts the devices whose share has not been given back; a device that is gone keeps its share
    while a client still holds it.
    """

    __slots__ = ("mdevs", "parent", "share", "spec", "taken")

    def __init__(self, spec: TypeSpec, parent: Parent) -> None:
        self.spec = spec
        self.parent = parent
        self.share = Share.of(spec)
        self.mdevs: dict[str, Mdev] = {}
        self.taken = 0

    @property
    def name(self) -> str:
        """Its directory in ``mdev_supported_types``."""
        return self.spec.name

    @property
    def pretty_name(self) -> str:
        """What its ``name`` attribute shows."""
        return self.spec.pretty_name or self.spec.name

    @property
    def description(self) -> str:
        """What its ``description`` attribute shows."""
        return self.spec.description

    @property
    def device_api(self) -> str:
        """The VFIO API of its devices, "vfio-pci"."""
        return self.spec.device_api

    @property
    def available_instances(self) -> int:
        """How many more devices of this type could be created now, exactly."""
        return self.room_for(self.share)

    def room_for(self, share: Share) -> int:
        """How many more devices of this type, each with ``share``, could be created now, exactly."""
        room = self.parent.room_for(share)
        if self.parent.places is not None:
            room = min(room, self.parent.places.room_for(self.spec))
        return room if self.spec.instances is None else min(room, self.spec.instances - self.taken)

    def charge(self, mdev: Mdev) -> None:
        """Take the share of a device, and its place, from the parent. The caller has checked
        :meth:`room_for`."""
        self.taken += 1
        self.parent.charge(mdev.share)
        if self.parent.places is not None:
            self.parent.places.take(mdev, self.spec)

    def refund(self, mdev: Mdev) -> None:
        """Give the share and the place of a device back to the parent."""
        self.taken -= 1
        self.parent.refund(mdev.share)
        if self.parent.places is not None:
            self.parent.places.give(mdev)


class Mdev(Assignable):
    """A mediated device. ``minor`` is its number as vgpu<N>, ``vfio_minor`` its number as vfio<N>.

    ``name`` is the name of its directory; ``online`` is whether it was started. Its model is made on first
    use, so an idle device costs next to nothing. Clients can open the device while its driver is ``bound``
    (:class:`devmodel.lifecycle.binding.MdevDriver`).
    """

    __slots__ = (
        "_device",
        "_disposed",
        "bound",
        "instance",
        "minor",
        "online",
        "share",
        "type",
        "uuid",
        "vfio_minor",
    )
    vfio_minor: int

    def __init__(
        self,
        uuid: UUID,
        instance: int,
        name: str,
        type_: MdevType,
        share: Share,
        group: Group,
        minor: int,
        vfio_minor: int,
    ) -> None:
        super().__init__(name, group)
        self.uuid = uuid
        self.instance = instance
        self.type = type_
        self.share = share
        self.minor = minor
        self.vfio_minor = vfio_minor
        self.online = False
        self.bound = True
        self._disposed = False
        self._device: Device | None = None

    @property
    def parent(self) -> Parent:
        """The parent that it takes its share from."""
        return self.type.parent

    @property
    def device(self) -> Device:
        """Its model, made on first use, from any thread. ``OSError(ENODEV)`` once the mdev is gone."""
        device = self._device
        return device if device is not None else self._make_device()

    @property
    def made(self) -> Device | None:
        """Its model, None if nothing has used it yet. Any thread."""
        return self._device

    @property
    def model(self) -> type[PciDevice]:
        """The class of its model, also while it has no model yet. Any thread."""
        made = self._device
        return type(made) if isinstance(made, PciDevice) else self.type.spec.model

    def bind(self) -> None:
        """Its driver is bound: clients can open it."""
        self.bound = True
        self.join()

    def unbind(self) -> None:
        """Its driver is unbound: no client can open it. The caller has made sure that none holds it."""
        self.bound = False
        self.withdraw()

    def retire(self) -> None:
        if self.bound:
            super().retire()
        elif self._disposed:
            raise OSError(errno.ENODEV, f"{self.name} is gone")

    def vanish(self) -> None:
        """Be gone at once, although clients may hold it (:meth:`Device.vanish` says what they see).

        Raises ``OSError(ENODEV)`` when it is gone already.
        """
        with self.group.lock:
            if self._disposed:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            self._disposed = True
            self.withdraw()
            self.group.let_go()  # who waits for its removal need not wait any longer
        if self._device is not None:
            self._device.vanish()

    @property
    def vanished(self) -> bool:
        """Whether it is gone by surprise, or its model is closed."""
        return self._disposed

    def renew(self, share: Share) -> Device | None:
        """Forget the model, so that the next use makes one of the type's class. ``share`` is as before, but
        for its options. Returns the old model. Any thread."""
        with self.group.lock:
            before, self._device = self._device, None
            self.share = share
        return before

    def dispose(self) -> None:
        """Close the model, if it was made. For a device that is retired or has vanished."""
        with self.group.lock:
            self._disposed = True
            device = self._device
        if device is not None:
            device.close()

    def _make_device(self) -> Device:
        with self.group.lock:
            if self._disposed:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            if self._device is None:
                model = self.type.spec.model
                made = model(self.name, self.share.memory, self.share.options)
                made.tasks.host = self.parent.host
                made.attach_parent(self.parent.device)
                self._device = made
            return self._device
