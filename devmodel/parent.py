# SPDX-License-Identifier: Apache-2.0
"""Parents, the types they offer, and the mediated devices made of them.

State: parents, types and the tables of devices belong to the lifecycle thread, under ``Lab.lock``; whether a
device is held open is under its group's lock, and so is the making of its model.
"""

import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from devmodel.device import Device, PciDevice
from devmodel.pci import Aperture
from devmodel.pciname import VfToken, check_token, parse_pci_name
from devmodel.spec import ParentSpec, TypeSpec
from devmodel.tasks import TaskHost
from devmodel.vfio import Assignable, Group

UNLIMITED = 2**31 - 1
"""What ``available_instances`` counts to when nothing bounds a type."""


class MdevType:
    """A type a parent offers, and the devices of it that exist."""

    __slots__ = ("mdevs", "parent", "spec")

    def __init__(self, spec: TypeSpec, parent: "Parent") -> None:
        self.spec = spec
        self.parent = parent
        self.mdevs: dict[str, Mdev] = {}

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
        """How many more of this type could be created now, exactly."""
        parent, spec = self.parent, self.spec
        limits = [UNLIMITED]
        if spec.memory:
            limits.append(parent.memory_free // spec.memory)
        if parent.slots_free is not None and spec.slots:
            limits.append(parent.slots_free // spec.slots)
        if spec.instances is not None:
            limits.append(spec.instances - len(self.mdevs))
        return min(limits)


class PciAddress(NamedTuple):
    """Segment (domain), bus, and device and function in one byte, as PCI_DEVFN() has them."""

    segment: int
    bus: int
    devfn: int


class PhysicalFunction(Assignable):
    """The PCI function of a physical GPU, in a group of its own, which it joins while vfio-pci drives it.

    ``bus`` are all functions of its bus, itself included, which a hot reset resets together. ``vf_token`` is
    None without SR-IOV.
    """

    __slots__ = ("_device", "bus", "driver", "driver_override", "vf_token", "vfio_minor")
    emulated_iommu = False

    def __init__(
        self,
        spec: ParentSpec,
        group: Group,
        aperture: Aperture,
        bus: "list[PhysicalFunction] | None" = None,
        host: TaskHost | None = None,
    ) -> None:
        """Raises ValueError for a model that cannot be made so. The function adds itself to ``bus``."""
        self.bus = [] if bus is None else bus
        self.bus.append(self)
        self.vf_token: VfToken | None = None
        if spec.model is None:
            raise ValueError(f"{spec.name} has no model")
        self._device = spec.model(spec.name, spec.memory, spec.options, aperture)
        self._device.tasks.host = host
        self.driver: str | None = spec.driver
        self.driver_override: str | None = None
        self.vfio_minor: int | None = None
        super().__init__(spec.name, group, joined=False)

    @property
    def device(self) -> PciDevice:
        """The function's configuration space and BARs."""
        return self._device

    @property
    def address(self) -> PciAddress:
        """Where it is, from its name."""
        segment, bus, slot = self.name.split(":")
        device, function = slot.split(".")
        return PciAddress(int(segment, 16), int(bus, 16), int(device, 16) << 3 | int(function))

    def answers_to(self, name: str) -> bool:
        asked = parse_pci_name(self.name, name)
        if asked is None:
            return False
        check_token(asked, self.vf_token)
        return True

    def first_opened(self) -> None:
        """vfio-pci resets a function for its new user, as far as that can be."""
        if self._device.resettable:
            self._device.reset()
        self._device.clear_master()

    def hot_reset(self, owned: Callable[["PhysicalFunction"], bool]) -> None:
        """Reset the bus. ``OSError(EINVAL)`` unless vfio-pci drives all of it and each function is
        ``owned``."""
        for function in self.bus:
            if function.gone or not owned(function):
                raise OSError(errno.EINVAL, f"{function.name} is on the bus, and not the client's")
        for function in self.bus:
            function.reset()

    def reset(self) -> None:
        """What vfio-pci does for a client that asks: the configuration space is saved and restored."""
        self._device.reset(kept=self._device.config)


class Parent:
    """A device that mediated devices are made of; ``function`` is the PCI function of a physical GPU."""

    __slots__ = ("function", "host", "mdevs", "memory_free", "name", "slots_free", "spec", "types")

    def __init__(
        self, spec: ParentSpec, function: PhysicalFunction | None, host: TaskHost | None = None
    ) -> None:
        """``host`` runs the tasks of its devices."""
        self.spec = spec
        self.host = host
        self.name = spec.name
        self.function = function
        self.memory_free = spec.memory
        self.slots_free = spec.slots
        self.types: Mapping[str, MdevType] = MappingProxyType(
            {type_.name: MdevType(type_, self) for type_ in spec.types}
        )
        self.mdevs: dict[str, Mdev] = {}

    @property
    def device(self) -> PciDevice | None:
        """The PCI device of a physical GPU, None for a virtual parent."""
        return self.function.device if self.function else None

    @property
    def group(self) -> Group | None:
        """The IOMMU group of a physical GPU, None for a virtual parent."""
        return self.function.group if self.function else None

    @property
    def has_host_driver(self) -> bool:
        """Whether the driver that shares it among vGPUs is bound; a virtual parent's always is."""
        return self.function is None or self.function.driver == self.spec.driver

    def charge(self, spec: TypeSpec) -> None:
        """Take a device's share; the caller made sure that it is there."""
        self.memory_free -= spec.memory
        if self.slots_free is not None:
            self.slots_free -= spec.slots

    def refund(self, spec: TypeSpec) -> None:
        """The opposite of :meth:`charge`."""
        self.memory_free += spec.memory
        if self.slots_free is not None:
            self.slots_free += spec.slots


class Mdev(Assignable):
    """A mediated device. ``minor`` is its number as vgpu<N>, ``vfio_minor`` as vfio<N>.

    ``name`` is its directory's name; ``online`` says whether it was started. Its model comes into being when
    first used, so that an idle device costs next to nothing.
    """

    __slots__ = ("_device", "instance", "minor", "online", "type", "uuid", "vfio_minor")

    def __init__(
        self, uuid: UUID, instance: int, name: str, type_: MdevType, group: Group, minor: int, vfio_minor: int
    ) -> None:
        super().__init__(name, group)
        self.uuid = uuid
        self.instance = instance
        self.type = type_
        self.minor = minor
        self.vfio_minor = vfio_minor
        self.online = False
        self._device: Device | None = None

    @property
    def parent(self) -> Parent:
        """What it was made of."""
        return self.type.parent

    @property
    def device(self) -> Device:
        """Its model, made on first use, from any thread. ``OSError(ENODEV)`` once the mdev is gone."""
        device = self._device
        return device if device is not None else self._make_device()

    def dispose(self) -> None:
        """Close the model of a device that has been retired."""
        with self.group.lock:
            device = self._device
        if device is not None:
            device.close()

    def _make_device(self) -> Device:
        with self.group.lock:
            if self.gone:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            if self._device is None:
                spec = self.type.spec
                self._device = spec.model(self.name, spec.memory, spec.options)
                self._device.tasks.host = self.parent.host
            return self._device
