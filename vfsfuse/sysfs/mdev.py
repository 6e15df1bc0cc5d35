# SPDX-License-Identifier: Apache-2.0
"""Mediated devices in sysfs: the types of a parent, and a vGPU's own directory.

Formats: Documentation/driver-api/vfio-mediated-device.rst for mdev_*, the vGPU RFC of 2016 for vgpu_*.
"""

from __future__ import annotations

from collections.abc import Mapping

from devmodel.device.display import Display
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev, MdevType
from devmodel.lifecycle.removal import remove
from devmodel.lifecycle.resources import Share
from devmodel.uuids import parse_uuid
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import attribute, link, snapshot, store_only, waiting_store
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.pci import PciAttributes
from vfsfuse.sysfs.screen import picture
from vfsfuse.sysfs.uevent import DeviceDir
from vfsfuse.sysfs.vgpu_resources import TypeResources, VgpuResources


class TypeDir(TypeResources):
    """<parent>/mdev_supported_types/<type>: a type of vGPU.

    `devices` is the directory of that name in it.
    """

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
        """Creates a vGPU with this UUID. EINVAL: no UUID; EEXIST: a device of this UUID exists; ENOSPC: no
        room."""
        self.lab.create(self.type, parse_uuid(text))

    @attribute()
    def available_instances(self) -> int:
        """The number of vGPUs of this type that there is room for."""
        return self.type.available_instances

    @attribute()
    def description(self) -> str:
        """What the type gives, in words."""
        return self.type.description

    @attribute()
    def device_api(self) -> str:
        """The API of its vGPUs: `vfio-pci`."""
        return self.type.device_api

    @attribute(name="name", when=lambda self: self.type.parent.spec.type_names)
    def pretty_name(self) -> str:
        """The name of the type for people, unless the parent has `type_names = false` in the lab file."""
        return self.type.pretty_name


class MdevDir(DeviceDir, PciAttributes, VgpuResources):
    """<parent>/<vgpu>: a vGPU, called `<uuid>` (made through mdev) or `<uuid>-<instance>` (made through
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
    def vgpu(self) -> Mdev:
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
        """1 removes the vGPU. EBUSY: a client holds it, or with `remove = "wait"` the write waits for the
        client."""
        if parse_number(text):
            await remove(self.view.lab, self.mdev)

    @store_only()
    def surprise_remove(self, text: str) -> None:
        """1 removes the vGPU at once, like a pulled cable: a client that holds it reads all ones."""
        if parse_number(text):
            self.view.lab.surprise_remove(self.mdev)

    @attribute()
    def vgpu_uuid(self) -> str:
        """The UUID of the VM that it belongs to."""
        return str(self.mdev.uuid)

    @attribute()
    def vgpu_instance(self) -> int:
        """The number that tells the vGPUs of one VM apart."""
        return self.mdev.instance

    @attribute()
    def vgpu_group_id(self) -> int:
        """The number of its IOMMU group."""
        return self.mdev.group.number

    @attribute()
    def online(self) -> int:
        """Whether the vGPU was started (`vgpu_start`): 1 or 0."""
        return int(self.mdev.online)

    @snapshot("screen.png", when=lambda self: issubclass(self.mdev.model, Display))
    def screen(self) -> bytes:
        """The picture that the display shows, as a PNG; present in displays. ENODATA: it shows nothing."""
        return picture(self.mdev.device)

    @link(of_driver=True)
    def iommu_group(self) -> Entry | None:
        """To its IOMMU group, while the vGPU is bound."""
        return self.view.group_dir(self.mdev.group)

    @link()
    def subsystem(self) -> Entry | None:
        """To `sys/bus/mdev`."""
        return self.view.subsystems.mdev_bus

    @link(of_driver=True)
    def driver(self) -> Entry | None:
        """To the driver `vfio_mdev`, while the vGPU is bound."""
        return self.view.subsystems.vfio_mdev if self.mdev.bound else None

    @link()
    def mdev_type(self) -> Entry | None:
        """To the type of the vGPU, while its parent has its host driver."""
        return self.view.type_dir(self.mdev.type)
