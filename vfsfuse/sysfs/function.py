# SPDX-License-Identifier: Apache-2.0
"""The directory of a PCI function that drivers can be bound to, physical or virtual
(Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from devmodel.lifecycle.function import PciFunction
from vfsfuse.kernfs.kobject import PAGE_SIZE, Entry, Kobject, attribute, link
from vfsfuse.sysfs.pci import PCI_ATTRIBUTES, REGION_FILES, PciIdentity, modalias
from vfsfuse.sysfs.uevent import Uevent

if TYPE_CHECKING:
    from vfsfuse.views.labview import LabView


def _variables(self: PciFunctionDir) -> dict[str, str]:
    device = self.assignable.device
    identity, driver = device.identity, self.assignable.driver
    return {
        **({"DRIVER": driver} if driver else {}),
        "PCI_CLASS": f"{identity.class_code:X}",
        "PCI_ID": f"{identity.vendor:04X}:{identity.device:04X}",
        "PCI_SUBSYS_ID": f"{identity.subsystem_vendor:04X}:{identity.subsystem_device:04X}",
        "PCI_SLOT_NAME": self.name,
        "MODALIAS": modalias(device),
    }


class PciFunctionDir(Kobject, PciIdentity):
    """sys/devices/pci<domain>:<bus>/<bdf>."""

    __slots__ = ("assignable", "view")
    declared = (Uevent(_variables, "pci"), *PCI_ATTRIBUTES, *REGION_FILES)

    assignable: PciFunction

    def __init__(self, view: LabView, function: PciFunction) -> None:
        super().__init__(function.name)
        self.view, self.assignable = view, function

    @property
    def options(self) -> Mapping[str, int]:
        """The options of its model."""
        return self.assignable.device.options

    @attribute()
    def irq(self) -> int:
        return 0  # no interrupt of the host is behind it

    @attribute(name="modalias")
    def modalias_line(self) -> str:
        return modalias(self.assignable.device)

    @attribute()
    def enable(self) -> int:
        return 1

    @attribute()
    def numa_node(self) -> int:
        return -1

    @attribute(0o644)
    def driver_override(self) -> str:
        return self.assignable.driver_override or "(null)"

    @driver_override.store
    def _store_driver_override(self, text: str) -> None:
        if len(text) >= PAGE_SIZE - 1:
            raise ValueError("as long as a page")
        self.assignable.driver_override = text.split("\n", 1)[0] or None

    @link()
    def driver(self) -> Entry | None:
        return self.view.places.pci_drivers.get(self.assignable.driver or "")

    @link()
    def subsystem(self) -> Entry | None:
        return self.view.places.pci_bus

    @link()
    def iommu_group(self) -> Entry | None:
        return self.view.group_dir(self.assignable.group)
