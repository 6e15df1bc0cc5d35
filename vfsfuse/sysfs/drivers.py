# SPDX-License-Identifier: Apache-2.0
"""sys/bus/pci: drivers that bind and unbind physical functions, and the bus' own attributes."""

from __future__ import annotations

import errno

from devmodel.lab import Lab, Parent
from vfsfuse.kobject import Kobject, attribute, store_only


class PciBus(Kobject):
    """sys/bus/pci."""

    __slots__ = ("lab",)

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name)
        self.lab = lab

    @attribute(0o644)
    def drivers_autoprobe(self) -> int:
        return 1

    @drivers_autoprobe.store
    def _store_autoprobe(self, text: str) -> None:
        if text != "1":
            raise ValueError(
                "functions appear only when the lab starts, so there is nothing to keep from probing"
            )

    @store_only()
    def drivers_probe(self, text: str) -> None:
        self.lab.drivers.probe(find_function(self.lab, text))


class PciDriver(Kobject):
    """sys/bus/pci/drivers/<driver>."""

    __slots__ = ("lab",)

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name)
        self.lab = lab

    @store_only()
    def bind(self, text: str) -> None:
        self.lab.drivers.bind(find_function(self.lab, text), self.name)

    @store_only()
    def unbind(self, text: str) -> None:
        self.lab.drivers.unbind(find_function(self.lab, text), self.name)


def find_function(lab: Lab, name: str) -> Parent:
    """The physical function at address `name`.  Raises OSError(ENODEV)."""
    parent = lab.parents.get(name.strip())
    if parent is None or parent.function is None:
        raise OSError(errno.ENODEV, f"no PCI function {name!r}")
    return parent
