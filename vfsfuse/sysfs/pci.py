# SPDX-License-Identifier: Apache-2.0
"""What every directory of a PCI function has (Documentation/ABI/testing/sysfs-bus-pci): its identity, config
space and resource files.  A vGPU's directory has them too."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.vfio.group import Assignable
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.kernfs.kobject import Attribute, BinaryMember, attribute
from vfsfuse.vfio.port import OWNER_ONLY_ABOVE, Port, open_region

if TYPE_CHECKING:
    from vfsfuse.views.labview import LabView

BARS = 6
ROM = int(PciRegion.ROM)


class PciIdentity:
    """What a directory with PCI attributes needs: its device, and the port by which clients reach that."""

    __slots__ = ()
    view: LabView

    @property
    @abstractmethod
    def assignable(self) -> Assignable:
        """Whose directory it is."""

    @property
    def port(self) -> Port:
        """Raises OSError(ENODEV) when the device is gone."""
        return self.view.nodes.port(self.assignable)

    def owned_by(self, uid: int) -> bool:
        """Whether `uid` may see what only the device's owner may."""
        return self.view.owned_by(uid)

    @property
    def function(self) -> PciDevice | None:
        device = self.assignable.device
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
    rows = self.function.resource_rows() if self.function is not None else ()
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
