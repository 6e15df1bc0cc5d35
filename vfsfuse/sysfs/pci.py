# SPDX-License-Identifier: Apache-2.0
"""PCI functions in sysfs (Documentation/ABI/testing/sysfs-bus-pci): what lspci, setpci and driverctl look at."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from devmodel.device import PciDevice, PciRegion
from devmodel.lab import Lab, Parent, parse_create_line, parse_destroy_line
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.kobject import Attribute, BinaryMember, Entry, Kobject, attribute, link, store_only
from vfsfuse.sysfs.uevent import Uevent
from vfsfuse.vfio.port import OWNER_ONLY_ABOVE, Port, open_region

if TYPE_CHECKING:
    from vfsfuse.labview import LabView

BARS = 6
ROM = int(PciRegion.ROM)


class PciIdentity:
    """What a directory with PCI attributes needs: a port to its device."""

    __slots__ = ()
    port: Port
    view: LabView

    def owned_by(self, uid: int) -> bool:
        """Whether `uid` may see what only the device's owner may."""
        return self.view.owned_by(uid)

    @property
    def function(self) -> PciDevice | None:
        device = self.port.device
        return device if isinstance(device, PciDevice) else None

    def pci_function(self) -> PciDevice:
        """The PCI function.  Raises OSError(ENODEV) when the device is none."""
        function = self.function
        if function is None:
            raise OSError(errno.ENODEV, "not a PCI device")
        return function


def _field(name: str, digits: int, get: Callable[[PciDevice], int]) -> Attribute:
    def show(self: PciIdentity) -> str:
        return f"{get(self.pci_function()):#0{digits + 2}x}"

    return attribute(name=name)(show)


def _resource(self: PciIdentity) -> str:
    rows = self.function.resources() if self.function is not None else ()
    return "\n".join(f"{row.start:#018x} {row.end:#018x} {row.flags:#018x}" for row in rows)


def modalias(device: PciDevice) -> str:
    """As pci_uevent() writes it: pci:v…d…sv…sd…bc…sc…i…."""
    identity = device.identity
    code = identity.class_code
    return (
        f"pci:v{identity.vendor:08X}d{identity.device:08X}sv{identity.subsystem_vendor:08X}"
        f"sd{identity.subsystem_device:08X}bc{code >> 16:02X}sc{code >> 8 & 0xFF:02X}i{code & 0xFF:02X}"
    )


PCI_ATTRIBUTES: tuple[Attribute, ...] = (
    _field("vendor", 4, lambda function: function.identity.vendor),
    _field("device", 4, lambda function: function.identity.device),
    _field("subsystem_vendor", 4, lambda function: function.identity.subsystem_vendor),
    _field("subsystem_device", 4, lambda function: function.identity.subsystem_device),
    _field("class", 6, lambda function: function.identity.class_code),
    _field("revision", 2, lambda function: function.identity.revision),
    attribute(name="resource")(_resource),
)


def _config_size(self: PciIdentity) -> int | None:
    return self.function.config.size if self.function is not None else None


def _open_config(self: PciIdentity, request: OpenRequest) -> Opened:
    limit = None if self.owned_by(request.uid) else OWNER_ONLY_ABOVE
    return open_region(self.port, PciRegion.CONFIG, request, limit)


def _resource_file(index: int) -> BinaryMember:
    def size(self: PciIdentity) -> int | None:
        bar = self.function.bar_map.get(index) if self.function is not None else None
        return None if bar is None else bar.size

    def opener(self: PciIdentity, request: OpenRequest) -> Opened:
        return open_region(self.port, index, request)

    return BinaryMember("rom" if index == ROM else f"resource{index}", 0o600, size, opener)


REGION_FILES: tuple[BinaryMember, ...] = (
    BinaryMember("config", 0o644, _config_size, _open_config),
    *(_resource_file(index) for index in (*range(BARS), ROM)),
)


def _pci_variables(self: PciFunctionDir) -> dict[str, str]:
    identity = self.pci.identity
    return {
        "DRIVER": self.parent_device.spec.driver,
        "PCI_CLASS": f"{identity.class_code:X}",
        "PCI_ID": f"{identity.vendor:04X}:{identity.device:04X}",
        "PCI_SUBSYS_ID": f"{identity.subsystem_vendor:04X}:{identity.subsystem_device:04X}",
        "PCI_SLOT_NAME": self.name,
        "MODALIAS": modalias(self.pci),
    }


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

    __slots__ = ("override", "pci", "port")
    declared = (Uevent(_pci_variables), *PCI_ATTRIBUTES, *REGION_FILES)

    def __init__(self, view: LabView, parent: Parent, device: PciDevice) -> None:
        super().__init__(view, parent)
        self.pci = device
        self.port = Port(lambda: device)
        self.override = ""

    @property
    def lab(self) -> Lab:
        return self.view.lab

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
        return self.override or "(null)"

    @driver_override.store
    def _store_driver_override(self, text: str) -> None:
        self.override = text

    @attribute()
    def vgpu_supported_types(self) -> str:
        return "\n".join(f"{name}: {t.description}" for name, t in self.parent_device.types.items())

    @store_only()
    def vgpu_create(self, text: str) -> None:
        line = parse_create_line(text)
        type_ = self.parent_device.types.get(line.type_name)
        if type_ is None:
            raise ValueError(f"no type {line.type_name}")
        self.lab.create(type_, line.uuid, line.instance, f"{line.uuid}-{line.instance}")

    @store_only()
    def vgpu_destroy(self, text: str) -> None:
        line = parse_destroy_line(text)
        mdev = self.lab.find(line.uuid, line.instance)
        if mdev.parent is not self.parent_device:
            raise ValueError(f"{text} is not of {self.name}")
        self.lab.remove(mdev)

    @link()
    def driver(self) -> Entry | None:
        return self.view.places.pci_drivers.get(self.parent_device.spec.driver)

    @link()
    def subsystem(self) -> Entry | None:
        return self.view.places.pci_bus

    @link()
    def iommu_group(self) -> Entry | None:
        group = self.parent_device.group
        return None if group is None else self.view.group_dir(group)
