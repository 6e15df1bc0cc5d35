# SPDX-License-Identifier: Apache-2.0
"""The attributes that every directory of a PCI function has, and a vGPU's as well: identity, config space and
resource files.  Source: Documentation/ABI/testing/sysfs-bus-pci, Documentation/PCI/sysfs-pci.rst.

show() is called on the trio thread and on the device lane; the device lane opens the files.
"""

from __future__ import annotations

import errno
from abc import abstractmethod

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.vfio.group import Assignable
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import BinaryMember, attribute, binary
from vfsfuse.sysfs.lab import View
from vfsfuse.vfio.port import OWNER_ONLY_ABOVE, Port, open_region

BARS = 6
ROM = int(PciRegion.ROM)


def _config_size(self: PciAttributes) -> int | None:
    return self.function.config.size if self.function is not None else None


def _region_file(index: int) -> BinaryMember:
    """`resource<N>` or `rom`: a region that the function has, of its size."""

    def size(self: PciAttributes) -> int | None:
        bar = self.function.bar_map.get(index) if self.function is not None else None
        return None if bar is None else bar.size

    def opener(self: PciAttributes, request: OpenRequest) -> Opened:
        return open_region(self.port, index, request)

    return BinaryMember("rom" if index == ROM else f"resource{index}", 0o600, size, opener)


class PciAttributes(Kobject):
    """The attribute group.  Reading an identity of a device that is no PCI device is OSError(ENODEV)."""

    __slots__ = ()
    view: View

    @property
    @abstractmethod
    def assignable(self) -> Assignable:
        """The device of the directory."""

    @property
    def port(self) -> Port:
        """The port by which clients reach the device.  Raises OSError(ENODEV) when the device is gone."""
        return self.view.port(self.assignable)

    def owned_by(self, uid: int) -> bool:
        """Whether `uid` may see what only the owner of the device may see."""
        return self.view.owned_by(uid)

    @property
    def function(self) -> PciDevice | None:
        """The device, None when it is no PCI device."""
        device = self.assignable.device
        return device if isinstance(device, PciDevice) else None

    def pci_function(self) -> PciDevice:
        """The device.  Raises OSError(ENODEV) when it is no PCI device."""
        function = self.function
        if function is None:
            raise OSError(errno.ENODEV, "not a PCI device")
        return function

    @attribute()
    def vendor(self) -> str:
        return f"{self.pci_function().identity.vendor:#06x}"

    @attribute()
    def device(self) -> str:
        return f"{self.pci_function().identity.device:#06x}"

    @attribute()
    def subsystem_vendor(self) -> str:
        return f"{self.pci_function().identity.subsystem_vendor:#06x}"

    @attribute()
    def subsystem_device(self) -> str:
        return f"{self.pci_function().identity.subsystem_device:#06x}"

    @attribute(name="class")
    def class_code(self) -> str:
        return f"{self.pci_function().identity.class_code:#08x}"

    @attribute()
    def revision(self) -> str:
        return f"{self.pci_function().identity.revision:#04x}"

    @attribute()
    def resource(self) -> str:
        rows = self.function.resource_rows() if self.function is not None else ()
        return "\n".join(f"{row.start:#018x} {row.end:#018x} {row.flags:#018x}" for row in rows)

    @binary(0o644, _config_size)
    def config(self, request: OpenRequest) -> Opened:
        limit = None if self.owned_by(request.uid) else OWNER_ONLY_ABOVE
        return open_region(self.port, PciRegion.CONFIG, request, limit)

    resource0, resource1, resource2, resource3, resource4, resource5 = map(_region_file, range(BARS))
    rom = _region_file(ROM)
