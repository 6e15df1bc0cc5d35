# SPDX-License-Identifier: Apache-2.0
"""What is common to PCI functions that drivers bind: the driver, the device that is made on first use, and
the group that they are in.

State: the driver and its override are the lifecycle thread's, under ``Lab.lock``; whether a client holds a
function is under its group's lock. Source: the behaviour of vfio-pci and of Linux' PCI core.
"""

from __future__ import annotations

import errno
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

from devmodel.device.pci import PciDevice, ResourceRow
from devmodel.device.traits import Traits
from devmodel.lifecycle.iommugroup import IommuGroup
from devmodel.lifecycle.iommuunit import Domain, DomainType, IommuUnit
from devmodel.lifecycle.pcicore import DRIVER_DMA_BITS, PciCore
from devmodel.pci.address import PciAddress
from devmodel.pci.express import ExpressRegisters
from devmodel.pci.fields import Identity
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.vfio_pci import VfioPciFunction

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

    def renew(self, model: type[PciDevice], traits: Traits) -> PciDevice | None:
        """Be of another model. The next use makes its device. Returns the old one. The caller has made sure
        that no client holds it. Any thread."""
        with self._making:
            before, self._device, self._access = self._device, None, None
            self.model, self.traits = model, traits
        return before

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
