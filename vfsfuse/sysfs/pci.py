# SPDX-License-Identifier: Apache-2.0
"""The attributes that every directory of a PCI function has, and a vGPU's as well: identity, config space and
resource files.  Source: Documentation/ABI/testing/sysfs-bus-pci, Documentation/PCI/sysfs-pci.rst.

show() is called on the trio thread and on the device lane; the device lane opens the files.
"""

from __future__ import annotations

import errno
from abc import abstractmethod

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.pci.fields import Bar, Identity
from devmodel.vfio.group import Assignable
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import BinaryMember, attribute, binary
from vfsfuse.sysfs.lab import View
from vfsfuse.vfio.port import OWNER_ONLY_ABOVE, Port, open_region

BARS = 6
ROM = int(PciRegion.ROM)
RESOURCE_DOC = """\
The memory, the registers or the I/O ports of a BAR; present where the device has it. Memory and registers can
be read here, and only mapped on Linux. A read of the ports of a PCI function has 1, 2 or 4 bytes, as on
Linux. Root can map memory (Linux 6.9). mmap(2) of registers is ENODEV, and so is that of a BAR above 0 while
a VFIO client may map it.

Writes them, as they are read.
"""
ROM_DOC = """\
The option ROM; present where the device has one.

Has no effect.
"""


def _config_size(self: PciAttributes) -> int | None:
    return self.config_size


def _region_file(index: int) -> BinaryMember:
    """`resource<N>` or `rom`: a region that the function has, of its size."""

    def size(self: PciAttributes) -> int | None:
        bar = self.bar(index)
        return None if bar is None else bar.size

    def opener(self: PciAttributes, request: OpenRequest) -> Opened:
        return self.open_resource(index, request)

    if index == ROM:
        return BinaryMember("rom", 0o600, size, opener, ROM_DOC)
    return BinaryMember(f"resource{index}", 0o600, size, opener, RESOURCE_DOC)


class PciAttributes(Kobject):
    """<device>: a PCI function or a vGPU.

    Reading an identity of a device that is no PCI device is OSError(ENODEV).
    """

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

    @property
    def identity(self) -> Identity:
        """The ids of the device.  Raises OSError(ENODEV) when it is no PCI device."""
        return self.pci_function().identity

    @property
    def config_size(self) -> int | None:
        """Bytes of configuration space, None when it is no PCI device."""
        return None if self.function is None else self.function.config.size

    def bar(self, index: int) -> Bar | None:
        """BAR `index`, or 6 for the ROM; None when there is none."""
        return None if self.function is None else self.function.bar_map.get(index)

    def open_resource(self, index: int, request: OpenRequest) -> Opened:
        """Open the file of BAR `index`, or 6 for the ROM.  Device lane."""
        return open_region(self.port, index, request)

    @attribute()
    def vendor(self) -> str:
        """The vendor id, in hexadecimal."""
        return f"{self.identity.vendor:#06x}"

    @attribute()
    def device(self) -> str:
        """The device id, in hexadecimal."""
        return f"{self.identity.device:#06x}"

    @attribute()
    def subsystem_vendor(self) -> str:
        """The subsystem vendor id, in hexadecimal."""
        return f"{self.identity.subsystem_vendor:#06x}"

    @attribute()
    def subsystem_device(self) -> str:
        """The subsystem device id, in hexadecimal."""
        return f"{self.identity.subsystem_device:#06x}"

    @attribute(name="class")
    def class_code(self) -> str:
        """The class code, in hexadecimal."""
        return f"{self.identity.class_code:#08x}"

    @attribute()
    def revision(self) -> str:
        """The revision id, in hexadecimal."""
        return f"{self.identity.revision:#04x}"

    @attribute()
    def resource(self) -> str:
        """The resources, a line each, with start, end and flags in hexadecimal: six BARs, the ROM, and six
        that are for bridges and virtual functions."""
        rows = self.function.resource_rows() if self.function is not None else ()
        return "\n".join(f"{row.start:#018x} {row.end:#018x} {row.flags:#018x}" for row in rows)

    @binary(0o644, _config_size)
    def config(self, request: OpenRequest) -> Opened:
        """Configuration space. Users other than root and the owner of the mount read the first 64 bytes.

        Writes the bits that the device lets a client write.
        """
        limit = None if self.owned_by(request.uid) else OWNER_ONLY_ABOVE
        return open_region(self.port, PciRegion.CONFIG, request, limit)

    resource0, resource1, resource2, resource3, resource4, resource5 = map(_region_file, range(BARS))
    rom = _region_file(ROM)
