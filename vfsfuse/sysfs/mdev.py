# SPDX-License-Identifier: Apache-2.0
"""Mediated devices in sysfs: the types of a parent, and a vGPU's own directory.

Formats: Documentation/driver-api/vfio-mediated-device.rst for mdev_*, the vGPU RFC of 2016 for vgpu_*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from devmodel.device.display import Display
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev, MdevType
from devmodel.uuids import parse_uuid
from devmodel.vfio.group import Group
from vfsfuse.kernfs.kobject import Entry, Kobject, SnapshotMember, attribute, link, store_only
from vfsfuse.kernfs.waiting import waiting_store
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.pci import PCI_ATTRIBUTES, REGION_FILES, PciIdentity
from vfsfuse.sysfs.screen import picture
from vfsfuse.sysfs.uevent import Uevent
from vfsfuse.sysfs.vgpu_resources import MDEV_RESOURCES, TYPE_RESOURCES

if TYPE_CHECKING:
    from vfsfuse.views.labview import LabView

GROUP_MAJOR, VFIO_MAJOR = 511, 510
"""Major numbers of the character devices of groups and of devices, as Linux picks them, groups first: the
highest of the dynamic range."""


class TypeDir(Kobject):
    """mdev_supported_types/<type>; `devices` is the directory of that name in it."""

    __slots__ = ("devices", "lab", "type")
    devices: Kobject
    declared = TYPE_RESOURCES

    def __init__(self, lab: Lab, type_: MdevType) -> None:
        super().__init__(type_.name)
        self.lab, self.type = lab, type_

    @store_only()
    def create(self, text: str) -> None:
        self.lab.create(self.type, parse_uuid(text))

    @attribute()
    def available_instances(self) -> int:
        return self.type.available_instances

    @attribute()
    def description(self) -> str:
        return self.type.description

    @attribute()
    def device_api(self) -> str:
        return self.type.device_api

    @attribute(name="name")
    def pretty_name(self) -> str:
        return self.type.pretty_name


def _variables(self: MdevDir) -> dict[str, str]:
    return {"DRIVER": "vfio_mdev"} if self.mdev.bound else {}


class MdevDir(Kobject, PciIdentity):
    """A vGPU: <parent>/<uuid> (made through mdev) or <parent>/<uuid>-<instance> (made through
    vgpu_create)."""

    __slots__ = ("mdev", "view")

    declared = (
        Uevent(_variables, "mdev"),
        *PCI_ATTRIBUTES,
        *REGION_FILES,
        *MDEV_RESOURCES,
        SnapshotMember(
            "screen.png",
            lambda self: picture(self.mdev.device),
            when=lambda self: issubclass(self.mdev.type.spec.model, Display),
        ),
    )

    def __init__(self, view: LabView, mdev: Mdev) -> None:
        super().__init__(mdev.name)
        self.view, self.mdev = view, mdev

    @property
    def assignable(self) -> Mdev:
        return self.mdev

    @property
    def options(self) -> Mapping[str, int]:
        """The options of its model."""
        return self.mdev.share.options

    @waiting_store()
    async def remove(self, text: str) -> None:
        if parse_number(text):
            await self.view.remove(self.mdev)

    @store_only()
    def surprise_remove(self, text: str) -> None:
        if parse_number(text):
            self.view.lab.surprise_remove(self.mdev)

    @attribute()
    def vgpu_uuid(self) -> str:
        return str(self.mdev.uuid)

    @attribute()
    def vgpu_instance(self) -> int:
        return self.mdev.instance

    @attribute()
    def vgpu_group_id(self) -> int:
        return self.mdev.group.number

    @attribute()
    def online(self) -> int:
        return int(self.mdev.online)

    @link()
    def iommu_group(self) -> Entry | None:
        return self.view.group_dir(self.mdev.group)

    @link()
    def subsystem(self) -> Entry | None:
        return self.view.places.mdev_bus

    @link()
    def driver(self) -> Entry | None:
        return self.view.places.vfio_mdev if self.mdev.bound else None

    @link()
    def mdev_type(self) -> Entry | None:
        return self.view.type_dir(self.mdev.type)


def _character_device(major: int, minor: int, name: str) -> dict[str, str]:
    return {"MAJOR": str(major), "MINOR": str(minor), "DEVNAME": f"vfio/{name}"}


def vfio_dev_variables(minor: int) -> dict[str, str]:
    """What the uevents of vfio<N> say."""
    return _character_device(VFIO_MAJOR, minor, f"devices/vfio{minor}")


def vfio_group_name(group: Group) -> str:
    """Its file in dev/vfio."""
    return f"{'noiommu-' if group.noiommu else ''}{group.number}"


def vfio_group_variables(group: Group) -> dict[str, str]:
    """What the uevents of a group's character device say."""
    return _character_device(GROUP_MAJOR, group.number, vfio_group_name(group))


class VfioDevDir(Kobject):
    """<device>/vfio-dev/vfio<N>: what sys/class/vfio-dev/vfio<N> points at."""

    __slots__ = ("minor",)
    declared = (Uevent(lambda self: vfio_dev_variables(self.minor), "vfio-dev"),)

    def __init__(self, minor: int) -> None:
        super().__init__(f"vfio{minor}")
        self.minor = minor

    @attribute()
    def dev(self) -> str:
        return f"{VFIO_MAJOR}:{self.minor}"

    @link()
    def device(self) -> Entry | None:
        above = self.parent
        return above.parent if above is not None else None


class VfioGroupDir(Kobject):
    """sys/devices/virtual/vfio/<N>: a group's character device, what sys/class/vfio/<N> points at."""

    __slots__ = ("group",)
    declared = (Uevent(lambda self: vfio_group_variables(self.group), "vfio"),)

    def __init__(self, group: Group) -> None:
        super().__init__(vfio_group_name(group))
        self.group = group

    @attribute()
    def dev(self) -> str:
        return f"{GROUP_MAJOR}:{self.group.number}"


class IommuGroupDir(Kobject):
    """sys/kernel/iommu_groups/<N>."""

    __slots__ = ("group",)

    def __init__(self, group: Group) -> None:
        super().__init__(str(group.number))
        self.group = group

    @attribute()
    def reserved_regions(self) -> str:
        return "" if self.group.viable else "0x00000000fee00000 0x00000000feefffff msi"

    @attribute(name="type")
    def domain_type(self) -> str:
        return "unmanaged" if self.group.viable else "DMA"
