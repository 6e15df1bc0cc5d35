# SPDX-License-Identifier: Apache-2.0
"""PCI functions that drivers bind: the physical function of a GPU, and its virtual functions.

State: driver and override are the lifecycle thread's, under ``Lab.lock``; whether a function is held open is
under its group's lock. Source: Documentation/PCI/pci-iov-howto.rst, vfio-pci's behaviour.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from devmodel.device.pci import PciDevice
from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.spec import ParentSpec
from devmodel.lifecycle.vf import VfLayout, with_vfs
from devmodel.pci.config import Aperture
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.vftoken import VfToken, parse_pci_name

if TYPE_CHECKING:
    from devmodel.lifecycle.parent import Parent

VFIO_PCI = "vfio-pci"


class PciAddress(NamedTuple):
    """Segment (domain), bus, and device and function in one byte, as PCI_DEVFN() has them."""

    segment: int
    bus: int
    devfn: int

    @classmethod
    def parse(cls, name: str) -> PciAddress:
        """The address that sysfs spells ``name``."""
        segment, bus, slot = name.split(":")
        device, function = slot.split(".")
        return cls(int(segment, 16), int(bus, 16), int(device, 16) << 3 | int(function))


class PciFunction(Assignable):
    """A PCI function in a group of its own, which it joins while vfio-pci drives it.

    ``bus`` are all functions of its bus, itself included, which a hot reset resets together.
    """

    __slots__ = ("_device", "bus", "driver", "driver_override", "vfio_minor")
    emulated_iommu = False

    def __init__(self, name: str, group: Group, device: PciDevice, bus: list[PciFunction]) -> None:
        """The function adds itself to ``bus``."""
        self._device = device
        self.bus = bus
        self.bus.append(self)
        self.driver: str | None = None
        self.driver_override: str | None = None
        self.vfio_minor: int | None = None
        super().__init__(name, group, joined=False)

    @property
    def device(self) -> PciDevice:
        """The function's configuration space and BARs."""
        return self._device

    @property
    @abstractmethod
    def parent(self) -> Parent:
        """The physical GPU it belongs to."""

    @property
    @abstractmethod
    def host_driver(self) -> str | None:
        """The driver that takes it unless told otherwise; None when there is none."""

    @property
    def probed(self) -> bool:
        """Whether drivers may take it without its being told which one."""
        return True

    @property
    def address(self) -> PciAddress:
        """Where it is, from its name."""
        return PciAddress.parse(self.name)

    @abstractmethod
    def check_token(self, token: UUID | None) -> None:
        """Whether a client with this VF token may open it.

        Raises ``OSError``: EACCES for a missing or wrong one, EINVAL for one where none is asked for.
        """

    def answers_to(self, name: str) -> bool:
        asked = parse_pci_name(self.name, name)
        if asked is None:
            return False
        self.check_token(asked.token)
        return True

    def check_direct(self) -> None:
        self.check_token(None)

    def first_opened(self) -> None:
        """vfio-pci resets a function for its new user, as far as that can be."""
        if self._device.resettable:
            self._device.reset()
        self._device.clear_master()

    def hot_reset(self, owned: Callable[[PciFunction], bool]) -> None:
        """Reset the bus. ``OSError(EINVAL)`` unless vfio-pci drives all of it and each function is
        ``owned``."""
        functions = tuple(self.bus)
        for function in functions:
            if function.gone or not owned(function):
                raise OSError(errno.EINVAL, f"{function.name} is on the bus, and not the client's")
        for function in functions:
            function.reset()

    def reset(self) -> None:
        """What vfio-pci does for a client that asks: the configuration space is saved and restored."""
        self._device.reset(kept=self._device.config)


class PhysicalFunction(PciFunction):
    """The PCI function of a physical GPU.

    ``layout`` says what its virtual functions are, None without SR-IOV; ``vfs`` are those that are enabled.
    ``vf_token`` is there while vfio-pci drives a function with SR-IOV. ``autoprobe`` is whether host drivers
    may take its virtual functions.
    """

    __slots__ = ("autoprobe", "host", "layout", "owner", "spec", "vf_token", "vfs")

    def __init__(
        self,
        spec: ParentSpec,
        group: Group,
        aperture: Aperture,
        bus: list[PciFunction] | None = None,
        host: TaskHost | None = None,
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        """Raises ValueError for a model that cannot be made so. ``offsets`` has the place of its virtual
        functions (devmodel.lifecycle.vf.place_vfs)."""
        if spec.model is None:
            raise ValueError(f"{spec.name} has no model")
        self.spec, self.host = spec, host
        self.layout = VfLayout(spec, (offsets or {})[spec.name], aperture) if spec.vfs else None
        model = spec.model if self.layout is None else with_vfs(spec.model, self.layout)
        device = model(spec.name, spec.memory, spec.options, aperture)
        device.tasks.host = host
        self.vfs: list[VirtualFunction] = []
        self.vf_token: VfToken | None = None
        self.autoprobe = True
        self.owner: Parent | None = None
        super().__init__(spec.name, group, device, [] if bus is None else bus)
        self.driver = spec.driver

    @property
    def parent(self) -> Parent:
        if self.owner is None:
            raise OSError(errno.ENODEV, f"{self.name} belongs to no GPU")
        return self.owner

    @property
    def host_driver(self) -> str:
        return self.spec.driver

    def check_token(self, token: UUID | None) -> None:
        if self.vf_token is not None:
            self.vf_token.check(token)
        elif token is not None:
            raise OSError(errno.EINVAL, "a VF token, but the function has no SR-IOV")


class VirtualFunction(PciFunction):
    """Virtual function ``index`` of a physical one."""

    __slots__ = ("index", "physical")

    def __init__(
        self, physical: PhysicalFunction, layout: VfLayout, index: int, group: Group, bus: list[PciFunction]
    ) -> None:
        self.physical, self.index = physical, index
        name = layout.address(index)
        device = layout.make(name, index)
        device.tasks.host = physical.host
        device.attach_parent(physical.device)
        device.clear_master()
        super().__init__(name, group, device, bus)

    @property
    def parent(self) -> Parent:
        return self.physical.parent

    @property
    def host_driver(self) -> None:
        return None

    @property
    def probed(self) -> bool:
        return self.physical.autoprobe or self.driver_override is not None

    @property
    def token(self) -> VfToken | None:
        """What its users share with those of the physical function; None when that is not vfio-pci's."""
        return self.physical.vf_token

    def check_token(self, token: UUID | None) -> None:
        if self.token is not None:
            self.token.check_user(token)
        elif token is not None:
            raise OSError(errno.EINVAL, "a VF token, but vfio-pci does not drive the physical function")

    def hold(self) -> bool:
        first = super().hold()
        if first and self.token is not None:
            self.token.count(1)
        return first

    def drop(self) -> bool:
        last = super().drop()
        if last and self.token is not None:
            self.token.count(-1)
        return last
