# SPDX-License-Identifier: Apache-2.0
"""Mediated devices in sysfs: the types of a parent, and a vGPU's own directory.

Formats: Documentation/driver-api/vfio-mediated-device.rst for mdev_*, the vGPU RFC of 2016 for vgpu_*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from devmodel.display import Display
from devmodel.lab import Lab, Mdev, MdevType, parse_uuid
from devmodel.vfio import Group
from vfsfuse.kobject import Entry, Kobject, SnapshotMember, attribute, link, store_only
from vfsfuse.screen import picture
from vfsfuse.sysfs.numbers import parse_number
from vfsfuse.sysfs.pci import PCI_ATTRIBUTES, REGION_FILES, PciIdentity
from vfsfuse.sysfs.uevent import Uevent
from vfsfuse.vfio.port import Port

if TYPE_CHECKING:
    from vfsfuse.labview import LabView

VFIO_MAJOR = 511
"""Major number of the vfio character devices, as Linux picks it: the highest of the dynamic range."""


class TypeDir(Kobject):
    """mdev_supported_types/<type>; `devices` is the directory of that name in it."""

    __slots__ = ("devices", "lab", "type")
    devices: Kobject

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


class MdevDir(Kobject, PciIdentity):
    """A vGPU: <parent>/<uuid> (made through mdev) or <parent>/<uuid>-<instance> (made through
    vgpu_create)."""

    __slots__ = ("mdev", "port", "view")

    declared = (
        Uevent(lambda self: {"DRIVER": "vfio_mdev", "MODALIAS": f"mdev:{self.mdev.type.name}"}),
        *PCI_ATTRIBUTES,
        *REGION_FILES,
        SnapshotMember(
            "screen.png",
            lambda self: picture(self.mdev.device),
            when=lambda self: issubclass(self.mdev.type.spec.model, Display),
        ),
    )

    def __init__(self, view: LabView, mdev: Mdev) -> None:
        super().__init__(mdev.name)
        self.view, self.mdev = view, mdev
        self.port = Port(lambda: mdev.device)

    @property
    def options(self) -> Mapping[str, int]:
        """The model's options, as its type gives them."""
        spec = self.mdev.type.spec
        return spec.model.with_defaults(spec.options)

    @store_only()
    def remove(self, text: str) -> None:
        if parse_number(text):
            self.view.lab.remove(self.mdev)

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
        return self.view.places.vfio_mdev

    @link()
    def mdev_type(self) -> Entry | None:
        return self.view.type_dir(self.mdev.type)


class VfioDevDir(Kobject):
    """<device>/vfio-dev/vfio<N>: what sys/class/vfio-dev/vfio<N> points at."""

    __slots__ = ("minor",)

    declared = (
        Uevent(
            lambda self: {
                "MAJOR": str(VFIO_MAJOR),
                "MINOR": str(self.minor),
                "DEVNAME": f"vfio/devices/vfio{self.minor}",
            }
        ),
    )

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
