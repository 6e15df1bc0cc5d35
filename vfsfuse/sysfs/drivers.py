# SPDX-License-Identifier: Apache-2.0
"""sys/bus/pci and sys/bus/mdev: the attributes of the buses, and drivers that bind and unbind devices.

Names and errors: Documentation/ABI/testing/sysfs-bus-pci, and the behaviour of drivers/base/bus.c.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from devmodel.lifecycle.binding import held_by
from devmodel.lifecycle.hotplug import PCI
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.removal import taking_away
from devmodel.pci.ids import parse_new_id, parse_pci_id
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import PAGE_SIZE, attribute, link, store_only, waiting_store
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.lab import LabDir
from vfsfuse.sysfs.uevent import UeventStoreDir


class Drivers(Protocol):
    """The drivers of a bus; `autoprobe` says whether a new device is offered to them."""

    autoprobe: bool


class BusDir(LabDir, UeventStoreDir):
    """sys/bus/<bus>: a bus, `pci` or `mdev`."""

    __slots__ = ("drivers",)
    uevent_subsystem = "bus"

    def __init__(self, name: str, lab: Lab, drivers: Drivers) -> None:
        super().__init__(name, lab)
        self.drivers = drivers

    @attribute(0o644)
    def drivers_autoprobe(self) -> int:
        """Whether a new device of the bus is offered to drivers: 1 or 0."""
        return int(self.drivers.autoprobe)

    @drivers_autoprobe.store
    def _store_autoprobe(self, text: str) -> None:
        """0 turns it off, any other text turns it on."""
        self.drivers.autoprobe = not text.startswith("0")

    @store_only()
    def drivers_probe(self, text: str) -> None:
        """Offers the device of this name to the drivers of the bus. It is no error if they refuse it. ENODEV:
        there is no such device; EINVAL: a client has the IOMMU group that a host driver would need."""
        self.probe(text.strip())

    @abstractmethod
    def probe(self, device: str) -> None:
        """Offer the device of this name to the drivers.  Raises OSError(ENODEV) when there is none."""


class DriverDir(LabDir, UeventStoreDir):
    """sys/bus/<bus>/drivers/<driver>: a driver.

    `module_dir` is the directory of its module, None for a driver that is built into the kernel.
    """

    __slots__ = ("module_dir",)
    uevent_subsystem = "drivers"

    def __init__(self, name: str, lab: Lab, module_dir: Kobject | None = None) -> None:
        super().__init__(name, lab)
        self.module_dir = module_dir

    @link()
    def module(self) -> Entry | None:
        """To the module of the driver, unless the driver is built into the kernel."""
        return self.module_dir

    @store_only()
    def bind(self, text: str) -> None:
        """Binds the device of this name to the driver. ENODEV: there is no such device, or the driver does
        not take it; EBUSY: it has a driver, or a client has the IOMMU group that a host driver would need."""
        self.bind_device(text.strip())

    @waiting_store()
    async def unbind(self, text: str) -> None:
        """Takes the driver away from the device of this name, and before that its vGPUs and virtual
        functions. ENODEV: the device is not bound to it; EBUSY: a client holds one of them, or with
        `remove = "wait"` the write waits for the client."""
        await self.unbind_device(text.strip())

    @abstractmethod
    def bind_device(self, device: str) -> None:
        """Bind the device of this name.  Raises OSError as the driver core does."""

    @abstractmethod
    async def unbind_device(self, device: str) -> None:
        """Unbind the device of this name.  Raises OSError as the driver core does."""


class PciBusDir(BusDir):
    """sys/bus/pci: the PCI bus."""

    __slots__ = ()

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name, lab, lab.drivers)

    def probe(self, device: str) -> None:
        self.lab.drivers.attach(self.lab.drivers.find(device))

    @store_only()
    def rescan(self, text: str) -> None:
        """1 finds all functions that were removed, and offers them to the drivers unless `drivers_autoprobe`
        is 0. EINVAL: no number."""
        if parse_number(text):
            self.lab.hotplug.rescan(PCI)

    @attribute(0o644)
    def resource_alignment(self) -> str:
        """The alignments that were written, nothing at first. No BAR of a lab is placed by them."""
        return self.lab.drivers.resource_alignment

    @resource_alignment.store
    def _store_resource_alignment(self, text: str) -> None:
        """Sets it, whatever the text is. EINVAL: a page or more."""
        if len(text) >= PAGE_SIZE - 1:
            raise ValueError("as long as a page")
        self.lab.drivers.resource_alignment = text


class PciDriverDir(DriverDir):
    """sys/bus/pci/drivers/<driver>: a driver of PCI functions."""

    __slots__ = ()

    def bind_device(self, device: str) -> None:
        self.lab.drivers.bind(self.lab.drivers.find(device), self.name)

    async def unbind_device(self, device: str) -> None:
        function = self.lab.drivers.find(device)
        await taking_away(
            self.lab,
            lambda: (function, *held_by(function)),
            lambda: self.lab.drivers.unbind(function, self.name),
        )

    @store_only()
    def new_id(self, text: str) -> None:
        """Adds an id, `vendor device [subvendor [subdevice [class [class_mask [data]]]]]` in hexadecimal, and
        binds the matching functions that have no driver. EINVAL: fewer than two numbers, or data that is not
        0; EEXIST: the driver has such an id."""
        self.lab.drivers.add_id(self.name, parse_new_id(text))

    @store_only()
    def remove_id(self, text: str) -> None:
        """Removes an id that was added; functions stay bound. ENODEV: the driver has no such id."""
        self.lab.drivers.remove_id(self.name, parse_pci_id(text))


class MdevBusDir(BusDir):
    """sys/bus/mdev."""

    __slots__ = ()

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name, lab, lab.mdev_driver)

    def probe(self, device: str) -> None:
        self.lab.mdev_driver.attach(self.lab.named(device))


class MdevDriverDir(DriverDir):
    """sys/bus/mdev/drivers/vfio_mdev."""

    __slots__ = ()

    def bind_device(self, device: str) -> None:
        self.lab.mdev_driver.bind(self.lab.named(device), self.name)

    async def unbind_device(self, device: str) -> None:
        mdev = self.lab.named(device)
        await taking_away(self.lab, lambda: (mdev,), lambda: self.lab.mdev_driver.unbind(mdev))
