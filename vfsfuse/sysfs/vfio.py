# SPDX-License-Identifier: Apache-2.0
"""VFIO in sysfs: vfio-dev, and the classes vfio and misc.

No state but what devmodel has.  Formats: drivers/vfio.
"""

from __future__ import annotations

from typing import ClassVar

from devmodel.vfio.group import Group
from vfsfuse.kernfs.kobject import DeviceNumber, Entry, Kobject
from vfsfuse.kernfs.members import attribute, link
from vfsfuse.sysfs.uevent import ClassDeviceDir

MISC_MAJOR, VFIO_MINOR = 10, 196
"""The container's number, which is the same on every machine (<linux/miscdevice.h>)."""
IOMMU_MINOR = 256
"""The minor number of dev/iommu: the first that Linux gives by itself, since 6.17."""
GROUP_MAJOR, VFIO_MAJOR = 511, 510
"""Major numbers of the character devices of groups and of devices.  Linux takes them from the top of the
dynamic range, and groups come first."""
NOIOMMU = "noiommu-"
"""What the names of a group without an IOMMU and of its device begin with."""


def _character_device(number: DeviceNumber, name: str) -> dict[str, str]:
    return {"MAJOR": str(number.major), "MINOR": str(number.minor), "DEVNAME": name}


def vfio_dev_number(minor: int) -> DeviceNumber:
    """The number of the character device of a device that VFIO drives."""
    return DeviceNumber(VFIO_MAJOR, minor)


def vfio_dev_name(group: Group, minor: int) -> str:
    """The name of a device of the class vfio-dev, and of its file in dev/vfio/devices."""
    return f"{NOIOMMU if group.noiommu else ''}vfio{minor}"


def vfio_dev_variables(group: Group, minor: int, cdev: bool) -> dict[str, str]:
    """The variables in the uevents of vfio<N>. `cdev` is whether it is a character device."""
    name = vfio_dev_name(group, minor)
    return _character_device(vfio_dev_number(minor), f"vfio/devices/{name}") if cdev else {}


def vfio_group_number(group: Group) -> DeviceNumber:
    """The number of a group's character device."""
    return DeviceNumber(GROUP_MAJOR, group.number)


def vfio_group_name(group: Group) -> str:
    """The name of its file in dev/vfio."""
    return f"{NOIOMMU if group.noiommu else ''}{group.number}"


def vfio_group_variables(group: Group) -> dict[str, str]:
    """The variables in the uevents of a group's character device."""
    return _character_device(vfio_group_number(group), f"vfio/{vfio_group_name(group)}")


class MiscDir(ClassDeviceDir):
    """A base for character devices of the class misc, whose nodes have this `mode`."""

    __slots__ = ("mode",)
    rdev: ClassVar[DeviceNumber]
    node: ClassVar[str]
    """Its path in dev."""

    def __init__(self, name: str, subsystem_dir: Kobject, mode: int) -> None:
        super().__init__(name, subsystem_dir)
        self.mode = mode

    def uevent_variables(self) -> dict[str, str]:
        return _character_device(self.rdev, self.node) | {"DEVMODE": f"0{self.mode:o}"}

    @attribute()
    def dev(self) -> str:
        """The numbers of the character device: `major:minor`."""
        return str(self.rdev)


class ContainerDir(MiscDir):
    """sys/devices/virtual/misc/vfio: the character device of containers, dev/vfio/vfio."""

    __slots__ = ()
    rdev = DeviceNumber(MISC_MAJOR, VFIO_MINOR)
    node = "vfio/vfio"


class IommufdDir(MiscDir):
    """sys/devices/virtual/misc/iommu: the character device of iommufd, dev/iommu."""

    __slots__ = ()
    rdev = DeviceNumber(MISC_MAJOR, IOMMU_MINOR)
    node = "iommu"


class VfioDevDir(ClassDeviceDir):
    """<device>/vfio-dev/<cdev>: the character device of a device that VFIO drives."""

    __slots__ = ("cdev", "group", "minor")

    def __init__(self, group: Group, minor: int, subsystem_dir: Kobject, cdev: bool) -> None:
        """`cdev` is whether it is a character device indeed."""
        super().__init__(vfio_dev_name(group, minor), subsystem_dir)
        self.group, self.minor, self.cdev = group, minor, cdev

    def uevent_variables(self) -> dict[str, str]:
        return vfio_dev_variables(self.group, self.minor, self.cdev)

    @attribute(when=lambda own: own.cdev)
    def dev(self) -> str:
        """The numbers of the character device: `major:minor`. It is there unless the lab file switches them
        off."""
        return str(vfio_dev_number(self.minor))

    @link()
    def device(self) -> Entry | None:
        """To the device."""
        above = self.parent
        return above.parent if above is not None else None


class VfioGroupDir(ClassDeviceDir):
    """sys/devices/virtual/vfio/<group>: the character device of a group."""

    __slots__ = ("group",)

    def __init__(self, group: Group, subsystem_dir: Kobject) -> None:
        super().__init__(vfio_group_name(group), subsystem_dir)
        self.group = group

    def uevent_variables(self) -> dict[str, str]:
        return vfio_group_variables(self.group)

    @attribute()
    def dev(self) -> str:
        """The numbers of the character device: `major:minor`."""
        return str(vfio_group_number(self.group))
