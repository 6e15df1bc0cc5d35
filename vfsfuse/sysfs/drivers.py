# SPDX-License-Identifier: Apache-2.0
"""sys/bus/pci and sys/bus/mdev: the buses' own attributes, and drivers that bind and unbind their devices.

Names and errors: Documentation/ABI/testing/sysfs-bus-pci, drivers/base/bus.c's behaviour.
"""

from __future__ import annotations

from devmodel.lifecycle.lab import Lab
from devmodel.pci.ids import parse_pci_id
from vfsfuse.kernfs.kobject import Kobject, attribute, store_only
from vfsfuse.sysfs.uevent import Uevent


class LabDir(Kobject):
    """A directory whose attributes act on the whole lab."""

    __slots__ = ("lab",)

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name)
        self.lab = lab


class DriverDir(LabDir):
    """The directory of a driver."""

    __slots__ = ()
    declared = (Uevent(lambda self: {}, "drivers", 0o200),)


class PciBusDir(LabDir):
    """sys/bus/pci."""

    __slots__ = ()

    @attribute(0o644)
    def drivers_autoprobe(self) -> int:
        return int(self.lab.drivers.autoprobe)

    @drivers_autoprobe.store
    def _store_autoprobe(self, text: str) -> None:
        self.lab.drivers.autoprobe = not text.startswith("0")

    @store_only()
    def drivers_probe(self, text: str) -> None:
        self.lab.drivers.probe(self.lab.drivers.find(text.strip()))


class PciDriverDir(DriverDir):
    """sys/bus/pci/drivers/<driver>."""

    __slots__ = ()

    @store_only()
    def bind(self, text: str) -> None:
        self.lab.drivers.bind(self.lab.drivers.find(text.strip()), self.name)

    @store_only()
    def unbind(self, text: str) -> None:
        self.lab.drivers.unbind(self.lab.drivers.find(text.strip()), self.name)

    @store_only()
    def new_id(self, text: str) -> None:
        self.lab.drivers.add_id(self.name, parse_pci_id(text))

    @store_only()
    def remove_id(self, text: str) -> None:
        self.lab.drivers.remove_id(self.name, parse_pci_id(text))


class MdevBusDir(LabDir):
    """sys/bus/mdev."""

    __slots__ = ()

    @attribute(0o644)
    def drivers_autoprobe(self) -> int:
        return int(self.lab.mdev_driver.autoprobe)

    @drivers_autoprobe.store
    def _store_autoprobe(self, text: str) -> None:
        self.lab.mdev_driver.autoprobe = not text.startswith("0")

    @store_only()
    def drivers_probe(self, text: str) -> None:
        self.lab.mdev_driver.probe(self.lab.named(text.strip()))


class MdevDriverDir(DriverDir):
    """sys/bus/mdev/drivers/vfio_mdev."""

    __slots__ = ()

    @store_only()
    def bind(self, text: str) -> None:
        self.lab.mdev_driver.bind(self.lab.named(text.strip()))

    @store_only()
    def unbind(self, text: str) -> None:
        self.lab.mdev_driver.unbind(self.lab.named(text.strip()))
