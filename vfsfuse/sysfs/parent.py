# SPDX-License-Identifier: Apache-2.0
"""The directories of devices that vGPUs are made of: physical GPUs on the PCI bus, and the sample parents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devmodel.binding import function_of
from devmodel.device import PciDevice
from devmodel.lab import Lab, Parent, parse_create_line, parse_destroy_line
from vfsfuse.kobject import PAGE_SIZE, Entry, Kobject, attribute, link, store_only
from vfsfuse.sysfs.pci import PCI_ATTRIBUTES, REGION_FILES, PciIdentity, modalias
from vfsfuse.sysfs.uevent import Uevent
from vfsfuse.vfio.port import Port

if TYPE_CHECKING:
    from vfsfuse.labview import LabView

HOST_MEMBERS = ("vgpu_supported_types", "vgpu_create", "vgpu_destroy")
"""What its host driver gives a physical GPU."""


def _variables(self: PciFunctionDir) -> dict[str, str]:
    identity = self.pci.identity
    driver = self.driver_name
    return {
        **({"DRIVER": driver} if driver else {}),
        "PCI_CLASS": f"{identity.class_code:X}",
        "PCI_ID": f"{identity.vendor:04X}:{identity.device:04X}",
        "PCI_SUBSYS_ID": f"{identity.subsystem_vendor:04X}:{identity.subsystem_device:04X}",
        "PCI_SLOT_NAME": self.name,
        "MODALIAS": modalias(self.pci),
    }


def _has_host_driver(self: PciFunctionDir) -> bool:
    return self.parent_device.has_host_driver


class ParentDir(Kobject):
    """The directory of a device that vGPUs are made of."""

    __slots__ = ("parent_device", "view")

    def __init__(self, view: LabView, parent: Parent) -> None:
        super().__init__(parent.name)
        self.view, self.parent_device = view, parent


class VirtualParentDir(ParentDir):
    """sys/devices/virtual/<driver>/<name>: a sample parent."""

    __slots__ = ()
    declared = (Uevent(lambda self: {}),)

    @link()
    def subsystem(self) -> Entry | None:
        return self.view.places.classes.get(self.parent_device.spec.driver)


class PciFunctionDir(ParentDir, PciIdentity):
    """sys/devices/pci<domain>:<bus>/<bdf>: a physical GPU that its host driver owns."""

    __slots__ = ("pci", "port")
    declared = (Uevent(_variables), *PCI_ATTRIBUTES, *REGION_FILES)

    def __init__(self, view: LabView, parent: Parent, device: PciDevice) -> None:
        super().__init__(view, parent)
        self.pci = device
        self.port = Port(lambda: device)

    @property
    def lab(self) -> Lab:
        return self.view.lab

    @property
    def driver_name(self) -> str | None:
        """The driver it is bound to now."""
        return function_of(self.parent_device).driver

    @attribute()
    def irq(self) -> int:
        return 0  # no interrupt of the host is behind it

    @attribute(name="modalias")
    def modalias_line(self) -> str:
        return modalias(self.pci)

    @attribute()
    def enable(self) -> int:
        return 1

    @attribute()
    def numa_node(self) -> int:
        return -1

    @attribute(0o644)
    def driver_override(self) -> str:
        return function_of(self.parent_device).driver_override or "(null)"

    @driver_override.store
    def _store_driver_override(self, text: str) -> None:
        if len(text) >= PAGE_SIZE - 1:
            raise ValueError("as long as a page")
        function_of(self.parent_device).driver_override = text.split("\n", 1)[0] or None

    @attribute(when=_has_host_driver)
    def vgpu_supported_types(self) -> str:
        return "\n".join(f"{name}: {t.description}" for name, t in self.parent_device.types.items())

    @store_only(when=_has_host_driver)
    def vgpu_create(self, text: str) -> None:
        line = parse_create_line(text)
        type_ = self.parent_device.types.get(line.type_name)
        if type_ is None:
            raise ValueError(f"no type {line.type_name}")
        self.lab.create(type_, line.uuid, line.instance, f"{line.uuid}-{line.instance}")

    @store_only(when=_has_host_driver)
    def vgpu_destroy(self, text: str) -> None:
        line = parse_destroy_line(text)
        mdev = self.lab.find(line.uuid, line.instance)
        if mdev.parent is not self.parent_device:
            raise ValueError(f"{text} is not of {self.name}")
        self.lab.remove(mdev)

    @link()
    def driver(self) -> Entry | None:
        return self.view.places.pci_drivers.get(self.driver_name or "")

    @link()
    def subsystem(self) -> Entry | None:
        return self.view.places.pci_bus

    @link()
    def iommu_group(self) -> Entry | None:
        group = self.parent_device.group
        return None if group is None else self.view.group_dir(group)
