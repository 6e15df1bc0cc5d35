# SPDX-License-Identifier: Apache-2.0
"""Mediated devices in sysfs: the types of a parent, and a vGPU's own directory.

Formats: Documentation/driver-api/vfio-mediated-device.rst for mdev_*, the vGPU RFC of 2016 for vgpu_*.
"""

from __future__ import annotations

from collections.abc import Mapping

from devmodel.device.display import Display
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev, MdevType
from devmodel.lifecycle.resources import Share
from devmodel.uuids import parse_uuid
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import attribute, link, snapshot, store_only, waiting_store
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.pci import PciAttributes
from vfsfuse.sysfs.screen import picture
from vfsfuse.sysfs.uevent import DeviceDir
from vfsfuse.sysfs.vgpu_resources import MdevResources, TypeResources


class TypeDir(TypeResources):
    """mdev_supported_types/<type>; `devices` is the directory of that name in it."""

    __slots__ = ("devices", "lab", "type")
    devices: Kobject

    def __init__(self, lab: Lab, type_: MdevType) -> None:
        super().__init__(type_.name)
        self.lab, self.type = lab, type_

    @property
    def share(self) -> Share:
        return self.type.share

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


class MdevDir(DeviceDir, PciAttributes, MdevResources):
    """A vGPU: <parent>/<uuid> (made through mdev) or <parent>/<uuid>-<instance> (made through
    vgpu_create)."""

    __slots__ = ("mdev", "view")
    uevent_subsystem = "mdev"

    def __init__(self, view: View, mdev: Mdev) -> None:
        super().__init__(mdev.name)
        self.view, self.mdev = view, mdev

    @property
    def assignable(self) -> Mdev:
        return self.mdev

    @property
    def options(self) -> Mapping[str, int]:
        """The options of its model."""
        return self.mdev.share.options

    @property
    def share(self) -> Share:
        return self.mdev.share

    def uevent_variables(self) -> dict[str, str]:
        return {"DRIVER": "vfio_mdev"} if self.mdev.bound else {}

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

    @snapshot("screen.png", when=lambda self: issubclass(self.mdev.type.spec.model, Display))
    def screen(self) -> bytes:
        return picture(self.mdev.device)

    @link(of_driver=True)
    def iommu_group(self) -> Entry | None:
        return self.view.group_dir(self.mdev.group)

    @link()
    def subsystem(self) -> Entry | None:
        return self.view.subsystems.mdev_bus

    @link(of_driver=True)
    def driver(self) -> Entry | None:
        return self.view.subsystems.vfio_mdev if self.mdev.bound else None

    @link()
    def mdev_type(self) -> Entry | None:
        return self.view.type_dir(self.mdev.type)
