# SPDX-License-Identifier: Apache-2.0
"""The directories of physical PCI functions, and of mdev parents: physical GPUs, and parents that are no PCI
device."""

from __future__ import annotations

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Parent
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.removal import remove
from devmodel.lifecycle.requests import parse_create_line, parse_destroy_line
from vfsfuse.kernfs.members import attribute, store_only, waiting_store
from vfsfuse.sysfs.endpoint import EndpointAttributes
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.uevent import ClassDeviceDir
from vfsfuse.sysfs.vgpu_resources import ParentResources


def _has_host_driver(self: ParentFunctionDir) -> bool:
    return self.parent_device.has_host_driver


class VirtualParentDir(ClassDeviceDir, ParentResources):
    """sys/devices/virtual/<driver>/<name>: an mdev parent that is no PCI function."""

    __slots__ = ("parent_device", "view")

    def __init__(self, view: View, parent: Parent) -> None:
        super().__init__(parent.name, view.subsystems.classes[parent.spec.driver])
        self.view, self.parent_device = view, parent


class PhysicalFunctionDir(PciFunctionDir, EndpointAttributes):
    """<function>: a physical function that is no bridge."""

    __slots__ = ()
    assignable: PhysicalFunction

    def __init__(self, view: View, function: PhysicalFunction) -> None:
        super().__init__(view, function)


class ParentFunctionDir(PhysicalFunctionDir, ParentResources):
    """<function>: a physical GPU, which is an mdev parent."""

    __slots__ = ("parent_device",)

    def __init__(self, view: View, function: PhysicalFunction) -> None:
        super().__init__(view, function)
        if function.parent is None:
            raise ValueError(f"{function.name} is no parent")
        self.parent_device = function.parent

    @property
    def lab(self) -> Lab:
        return self.view.lab

    @attribute(when=_has_host_driver, of_driver=True)
    def vgpu_supported_types(self) -> str:
        """The types of vGPU, a line each: `<type>: <description>`; present while the function has its host
        driver."""
        return "\n".join(f"{name}: {t.description}" for name, t in self.parent_device.types.items())

    @store_only(when=_has_host_driver, of_driver=True)
    def vgpu_create(self, text: str) -> None:
        """Creates a vGPU: `<uuid>:<instance>:<type>`, which `,key=value` may follow; present while the
        function has its host driver. EINVAL: another text; EEXIST: it exists; ENOSPC: no room."""
        line = parse_create_line(text)
        type_ = self.parent_device.types.get(line.type_name)
        if type_ is None:
            raise ValueError(f"no type {line.type_name}")
        self.lab.create(type_, line.uuid, line.instance, f"{line.uuid}-{line.instance}", line.overrides)

    @waiting_store(when=_has_host_driver, of_driver=True)
    async def vgpu_destroy(self, text: str) -> None:
        """Removes the vGPU `<uuid>:<instance>`; present while the function has its host driver. ENODEV: there
        is none; EBUSY: a client holds it, or with `remove = "wait"` the write waits for the client."""
        line = parse_destroy_line(text)
        mdev = self.lab.find(line.uuid, line.instance)
        if mdev.parent is not self.parent_device:
            raise ValueError(f"{text} is not of {self.name}")
        await remove(self.lab, mdev)


ParentDir = VirtualParentDir | ParentFunctionDir
"""The directory of an mdev parent."""
