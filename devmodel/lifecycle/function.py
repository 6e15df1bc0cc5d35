# SPDX-License-Identifier: Apache-2.0
"""PCI functions that drivers bind: physical ones, their virtual functions, and the parent of vGPUs that a
physical one may be.

State: the driver and its override are the lifecycle thread's, under ``Lab.lock``; whether a client holds a
function is under its group's lock. Source: Documentation/PCI/pci-iov-howto.rst, the behaviour of vfio-pci.
"""

from __future__ import annotations

import errno
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar
from uuid import UUID

from devmodel.device.pci import PciDevice, ResourceRow, show_multifunction
from devmodel.device.tasks import TaskHost
from devmodel.device.traits import Traits, make_device, traits_of
from devmodel.lifecycle.grouped import IommuGroup
from devmodel.lifecycle.iommuunit import Domain, DomainType, IommuUnit
from devmodel.lifecycle.mdev import Parent
from devmodel.lifecycle.pcicore import DRIVER_DMA_BITS, NO_NODE, PciCore
from devmodel.lifecycle.spec import Framework, FunctionSpec, ParentSpec
from devmodel.lifecycle.vf import VfLayout, extended_model, integrated_model, physical_model
from devmodel.pci.address import PciAddress
from devmodel.pci.capability import ExtendedCapability, access_control, serial_number
from devmodel.pci.config import Aperture, Decided
from devmodel.pci.express import ExpressRegisters
from devmodel.pci.fields import Identity
from devmodel.topology.placement import Placement
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.vfio_pci import VfioPciFunction
from devmodel.vfio.vftoken import VfToken

VFIO_PCI = "vfio-pci"
_DO_NO_DMA = frozenset({VFIO_PCI, "pcieport", "pci-stub"})
"""Drivers that leave the DMA of a function to its clients, or do none."""


class PciFunction(VfioPciFunction):
    """A PCI function that drivers bind: its host driver, vfio-pci, or none.

    ``core`` is what the host's PCI core keeps of it. ``upstream`` is the bridge above it, None on a
    root bus. ``unit`` is the IOMMU unit that it is behind, None without one.
    """

    __slots__ = (
        "_closed",
        "_device",
        "_driver",
        "_making",
        "core",
        "driver_override",
        "unit",
        "upstream",
        "vfio_minor",
    )
    driver_dma_bits: ClassVar[int] = DRIVER_DMA_BITS
    """The DMA mask that its host driver sets."""

    def __init__(
        self,
        address: PciAddress,
        group: Group,
        model: type[PciDevice],
        traits: Traits,
        bus: list[VfioPciFunction],
    ) -> None:
        """The function adds itself to ``bus``."""
        self._device: PciDevice | None = None
        self._closed = False
        self._making = threading.Lock()
        self._driver: str | None = None
        self.core = PciCore(self, traits.power_management)
        self.driver_override: str | None = None
        self.vfio_minor: int | None = None
        self.upstream: PciFunction | None = None
        self.unit: IommuUnit | None = None
        super().__init__(address, group, model, traits, bus)

    @property
    def device(self) -> PciDevice:
        device = self._device
        return device if device is not None else self._make_device()

    @property
    def made(self) -> PciDevice | None:
        return self._device

    @property
    def identity(self) -> Identity:
        """Its ids. Any thread."""
        device = self._device
        return self.model.identity if device is None else device.identity

    def tell(self, change: Callable[[PciDevice], None]) -> None:
        """Have ``change`` change the device, if it is made; it is not made meanwhile. Lifecycle thread."""
        with self._making:
            if self._device is not None:
                change(self._device)

    def close(self) -> None:
        """The function is gone: close its device, if it is made. It is not made any more."""
        with self._making:
            self._closed = True
            device = self._device
        if device is not None:
            device.close()

    def vanish(self) -> None:
        with self.group.lock:
            self.withdraw()
            self.group.let_go()  # who waits for its removal need not wait any longer
        with self._making:
            device = self._device
            self._closed |= device is None
        if device is not None:
            device.vanish()

    @property
    def vanished(self) -> bool:
        """Whether it is gone by surprise; also once it is closed, if it was never made. Any thread."""
        device = self._device
        return self._closed if device is None else device.vanished

    @abstractmethod
    def _make(self) -> PciDevice:
        """A new device, as firmware leaves it, with its host. Any thread."""

    def _make_device(self) -> PciDevice:
        with self._making:
            if self._device is None:
                if self._closed:
                    raise OSError(errno.ENODEV, f"{self.name} is gone")
                device = self._make()
                self.core.device_made(device)
                self._device = device
            return self._device

    @property
    def driver(self) -> str | None:
        """The driver that is bound to it, None without one."""
        return self._driver

    @driver.setter
    def driver(self, name: str | None) -> None:
        """Raises :class:`DmaOwned`, with nothing changed, for a host driver that does DMA, while a client has
        the IOMMU group."""
        before = self._driver
        if self.does_dma(name) and not self.does_dma(before):
            self.group.begin_host_use()
        elif self.does_dma(before) and not self.does_dma(name):
            self.group.end_host_use()
        self._driver = name
        if name == VFIO_PCI:
            self.core.vfio_came()
        elif name is not None:
            self.core.host_driver_came(self.driver_dma_bits)
        elif before is not None:
            self.core.driver_left(before == VFIO_PCI)

    @property
    def enable_count(self) -> int:
        """How many users have it enabled: its host driver, a client of vfio-pci, and those through sysfs."""
        by_driver = self.users > 0 if self.driver == VFIO_PCI else self.driver is not None
        return self.core.enables + by_driver

    def set_enabled(self, enabled: bool) -> None:
        """Enable or disable a function that has no driver.

        Raises ``OSError``: EBUSY while it has one, EIO for disabling one that is not enabled.
        """
        if self.driver is not None:
            raise OSError(errno.EBUSY, f"{self.name} is bound to {self.driver}")
        if enabled:
            self.core.enable()
        else:
            self.core.disable()

    @property
    def runtime_auto(self) -> bool:
        """Whether runtime power management may suspend it."""
        return self.core.runtime_auto

    @runtime_auto.setter
    def runtime_auto(self, allowed: bool) -> None:
        self.core.runtime_auto = allowed

    @property
    def runtime_usage(self) -> int:
        """How many users keep it from being suspended: its driver, and whoever forbids it."""
        return (not self.runtime_auto) + (self.driver is not None)

    @property
    def ari_enabled(self) -> bool:
        """Whether the port above numbers the functions of the bus with 8 bits: function 0 has ARI then."""
        first = next((each for each in tuple(self.bus) if not each.address.devfn), None)
        return self.below_port and first is not None and first.traits.ari

    @abstractmethod
    def rows(self) -> Iterator[ResourceRow]:
        """The addresses that it decodes, or forwards, as lines of sysfs ``resource``."""

    @property
    def link(self) -> ExpressRegisters | None:
        """The registers of its PCI Express capability at its upper end, None without one."""
        return self.traits.express

    @property
    def below_port(self) -> bool:
        return self.upstream is not None

    @property
    @abstractmethod
    def host_driver(self) -> str | None:
        """The driver that takes it without a driver_override, None when there is none."""

    @property
    def probed(self) -> bool:
        """Whether drivers may be bound to it now."""
        return True

    def does_dma(self, driver: str | None) -> bool:
        """Whether a driver does DMA for itself, so that no client can have the IOMMU group."""
        return driver is not None and driver not in _DO_NO_DMA

    @property
    def probe_fails(self) -> bool:
        """Whether the host driver cannot take it."""
        return False

    @property
    def assigned(self) -> Assignable | None:
        """What clients may open of it: itself while vfio-pci drives it, or the vGPU that its host driver
        makes of it. Under ``Lab.lock``."""
        return self if self.driver == VFIO_PCI else None

    @property
    def domain(self) -> Domain | None:
        """The domain of the IOMMU that it is in now, with all of its group. None when the group is bound to
        an iommufd and attached to nothing: its DMA is blocked. Any thread."""
        group = self.group
        with group.lock:
            bound, by_vfio = group.bound_device, group.domain
        if bound is not None:
            return None if bound.domain is None else Domain(False, bound.domain)
        if by_vfio is not None:
            return Domain(False, by_vfio)
        translated = isinstance(group, IommuGroup) and group.default_domain.type is not DomainType.IDENTITY
        return Domain(False, group) if translated else Domain(True, None)


class PhysicalParent(Parent):
    """A parent that is PCI function ``function``."""

    """A parent that is a physical GPU: the one of PCI function ``function``."""

    __slots__ = ("function",)

    def __init__(self, spec: ParentSpec, function: PhysicalFunction, host: TaskHost | None) -> None:
        """For :class:`PhysicalFunction`."""
        super().__init__(spec, host)
        self.function = function

    @property
    def vgpus(self) -> int:
        if self.spec.framework is Framework.NVIDIA and self.places is not None:
            return len(self.places)
        return super().vgpus

    @property
    def device(self) -> PciDevice:
        return self.function.device

    @property
    def has_host_driver(self) -> bool:
        return self.function.driver == self.spec.driver

    @property
    def leaving(self) -> bool:
        return bool(self.function.leaving)


class PhysicalFunction(PciFunction):
    """A physical PCI function, such as a GPU or a network card.

    ``parent`` shares it among vGPUs, None for a function that has none. ``layout`` describes its virtual
    functions, None without SR-IOV; ``vfs`` has those that are enabled. A function with SR-IOV has a
    ``vf_token`` while it is bound to vfio-pci. ``autoprobe`` (the function's sriov_drivers_autoprobe) is
    whether drivers may be bound to its virtual functions without an override.
    """

    __slots__ = (
        "_multifunction",
        "_places",
        "autoprobe",
        "host",
        "layout",
        "parent",
        "spec",
        "vf_token",
        "vfs",
    )

    def __init__(
        self,
        spec: FunctionSpec,
        group: Group,
        aperture: Aperture,
        bus: list[VfioPciFunction] | None = None,
        host: TaskHost | None = None,
        offsets: Mapping[str, int] | None = None,
        buses: Placement | None = None,
    ) -> None:
        """``offsets`` is what :func:`devmodel.lifecycle.vf.place_vfs` gives, ``buses`` are those of the lab
        (None: bus 0 is a root bus). Raises ValueError when the model cannot be what the spec asks for."""
        if spec.model is None:
            raise ValueError(f"{spec.name} has no model")
        self.spec, self.host = spec, host
        self.layout = VfLayout(spec, (offsets or {})[spec.name], aperture) if spec.vf is not None else None
        model = spec.model if self.layout is None else physical_model(spec.model, self.layout)
        address = PciAddress.parse(spec.name)
        extended = _extended(spec)
        if extended:
            model = extended_model(model, extended)
        if not address.bus if buses is None else buses.above(address) is None:
            model = integrated_model(model)
        self._multifunction = buses is not None and buses.multifunction(address)
        traits = traits_of(model, spec.memory, spec.options, spec.texts)
        self._places = traits.place(aperture)
        self.vfs: list[VirtualFunction] = []
        self.vf_token: VfToken | None = None
        self.autoprobe = True
        super().__init__(address, group, model, traits, [] if bus is None else bus)
        self.core.numa_node = NO_NODE if spec.numa_node is None else spec.numa_node
        shared = spec.parent
        self.parent = None if shared is None else PhysicalParent(shared, self, host)

    def _make(self) -> PciDevice:
        spec = self.spec
        places = Decided(self._places)
        device = make_device(self.model, spec.name, spec.memory, spec.options, spec.texts, places)
        device.tasks.host = self.host
        if self._multifunction:
            show_multifunction(device)
        return device

    def rows(self) -> Iterator[ResourceRow]:
        yield from self.traits.rows(self._places)
        if self.layout is not None:
            yield from (row for _, row in self.layout.rows())

    @property
    def host_driver(self) -> str | None:
        return self.spec.driver

    @property
    def own_vf_token(self) -> VfToken | None:
        return self.vf_token

    def check_token(self, token: UUID | None) -> None:
        if self.vf_token is not None:
            self.vf_token.check(token)
        elif token is not None:
            raise OSError(errno.EINVAL, "a VF token, but the function has no SR-IOV")


def _extended(spec: FunctionSpec) -> tuple[ExtendedCapability, ...]:
    """The extended capabilities that a spec asks for, besides those of the model."""
    found = [access_control()] if spec.acs else []
    if spec.serial is not None:
        found.append(serial_number(spec.serial))
    return tuple(found)


class VirtualFunction(PciFunction):
    """Virtual function ``index`` of a physical one.

    ``vectors`` is the size of its MSI-X table if the driver of the physical one shares vectors out, else 0.
    ``vgpu`` is what clients open of it while its host driver keeps it for them (devmodel.lifecycle.vendor).
    """

    __slots__ = ("index", "physical", "vectors", "vgpu")
    is_virtual = True

    def __init__(
        self,
        physical: PhysicalFunction,
        layout: VfLayout,
        index: int,
        group: Group,
        bus: list[VfioPciFunction],
    ) -> None:
        self.physical, self.index, self.vectors = physical, index, 0
        self.vgpu: Assignable | None = None
        super().__init__(layout.address(index), group, layout.model, layout.traits, bus)
        self.core.no_master()
        self.upstream = physical.upstream
        self.core.numa_node = physical.core.numa_node

    def rows(self) -> Iterator[ResourceRow]:
        layout = self.physical.layout
        assert layout is not None
        return self.traits.rows(layout.places_of(self.index))

    def _make(self) -> PciDevice:
        layout = self.physical.layout
        assert layout is not None
        device = layout.make(self.name, self.index)
        device.tasks.host = self.physical.host
        device.attach_parent(self.physical.device)
        if self.vectors:
            device.size_msix(self.vectors)
        return device

    @property
    def parent(self) -> PhysicalParent | None:
        """The parent that it is a virtual function of, None for those of a function that is no parent."""
        return self.physical.parent

    @property
    def host_driver(self) -> str | None:
        return None if self.physical.spec.vf is None else self.physical.spec.vf.driver

    @property
    def probed(self) -> bool:
        return self.physical.autoprobe or self.driver_override is not None

    def does_dma(self, driver: str | None) -> bool:
        return self.vgpu is None and super().does_dma(driver)

    @property
    def assigned(self) -> Assignable | None:
        return super().assigned if self.vgpu is None else self.vgpu

    @property
    def probe_fails(self) -> bool:
        return self.physical.spec.vf is not None and self.index in self.physical.spec.vf.failing

    @property
    def token(self) -> VfToken | None:
        """The token that its users share with those of the physical function. None while that is not bound to
        vfio-pci."""
        return self.physical.vf_token

    @property
    def below_port(self) -> bool:
        return super().below_port and self.address.bus == self.physical.address.bus

    def check_token(self, token: UUID | None) -> None:
        if self.token is not None:
            self.token.check_user(token)
        elif token is not None:
            raise OSError(errno.EINVAL, "a VF token, but vfio-pci does not drive the physical function")

    def first_opened(self) -> None:
        if self.token is not None:
            self.token.count(1)
        super().first_opened()

    def last_closed(self) -> None:
        try:
            super().last_closed()
        finally:
            if self.token is not None:
                self.token.count(-1)
