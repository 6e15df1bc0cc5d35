# SPDX-License-Identifier: Apache-2.0
"""Parents of vGPUs as objects of the API, their types, and the creation of vGPUs.

Objects keep no state; any thread.  docs/vgpu.md and docs/frameworks.md describe what they do.
"""

from __future__ import annotations

import errno
import os
import uuid as uuids
from collections.abc import Callable
from pathlib import Path

from vfsfuse.api.directory import Directory, Named
from vfsfuse.api.files import Files
from vfsfuse.api.functions import FUNCTIONS
from vfsfuse.api.vgpus import MDEVS, PLACEMENT, MediatedVgpu, VendorVgpu, Vgpu, type_of, virtual_functions

CLASS = "sys/class/mdev_bus"
TYPES = "mdev_supported_types"


class VgpuType(Directory):
    """A type of vGPU that a parent has.  `path` is its directory, or that of the parent in NVIDIA's
    framework, where types have none."""

    @property
    def description(self) -> str:
        """What the type gives, in words."""
        return self.attribute("description")

    @property
    def available_instances(self) -> int:
        """How many vGPUs of the type there is room for now.  NVIDIA's framework tells only whether there is
        room for one."""
        return int(self.attribute("available_instances"))


class VendorType(VgpuType):
    """A type of NVIDIA's framework."""

    def __init__(self, parent: VendorParent, number: str, title: str) -> None:
        super().__init__(parent._files, parent.path)
        self._parent, self._number, self._title = parent, number, title

    @property
    def name(self) -> str:
        """The id of the type."""
        return self._number

    @property
    def description(self) -> str:
        return self._title

    @property
    def available_instances(self) -> int:
        return int(self._number in self._parent.creatable())


class Parent(Directory):
    """A device that gives vGPUs: a physical GPU, or a parent that is no PCI function."""

    @property
    def driver(self) -> str | None:
        """The name of its driver, None if it has none.  It gives vGPUs while it has its host driver."""
        return self._files.link(self.path / "driver")

    @property
    def types(self) -> Named[VgpuType]:
        """Its types by name.  In NVIDIA's framework they are those that there is room for, by their ids."""
        raise NotImplementedError

    @property
    def vgpus(self) -> Named[Vgpu]:
        """Its vGPUs by name."""
        raise NotImplementedError

    def create(
        self, type: str, uuid: str | None = None, *, instance: int | None = None, **resources: str | int
    ) -> Vgpu:
        """Create a vGPU of the type, with a new UUID unless one is given.

        With an `instance`, or with resources that override the type's (vram="96M", weight=2), it is made by
        `vgpu_create`, as in the vGPU RFC of 2016, otherwise by mdev.  Raises KeyError if there is no such
        type, and OSError as the store does: ENOSPC if there is no room, EEXIST if there is a vGPU of this
        UUID, EINVAL for a resource that cannot be."""
        raise NotImplementedError


class MdevParent(Parent):
    """A parent of mediated devices."""

    @property
    def types(self) -> Named[VgpuType]:
        types = self.path / TYPES
        return Named(lambda: self._files.names(types), lambda name: self._type(types / name), "type")

    def _type(self, path: Path) -> VgpuType | None:
        inside = path.parent.name == TYPES and path.name.strip(".")
        return VgpuType(self._files, path) if inside and self._files.has(path) else None

    @property
    def vgpus(self) -> Named[Vgpu]:
        return Named(self._vgpu_names, self._vgpu, "vGPU")

    def _vgpu_names(self) -> list[str]:
        devices = self._files.root / MDEVS
        return [name for name in self._files.names(devices) if (devices / name).resolve().parent == self.path]

    def _vgpu(self, name: str) -> Vgpu | None:
        return MediatedVgpu(self._files, self.path / name) if name in self._vgpu_names() else None

    def create(
        self, type: str, uuid: str | None = None, *, instance: int | None = None, **resources: str | int
    ) -> MediatedVgpu:
        """As of every parent."""
        name = str(uuids.uuid4()) if uuid is None else uuid
        if instance is None and not resources:
            self.types[type].set("create", name)
            return MediatedVgpu(self._files, self.path / name.lower())
        number = instance or 0
        told = ",".join([self.types[type].name, *(f"{key}={value}" for key, value in resources.items())])
        self.set("vgpu_create", f"{name}:{number}:{told}")
        return MediatedVgpu(self._files, self.path / f"{name.lower()}-{number}")


class VendorParent(Parent):
    """A GPU with NVIDIA's framework, whose virtual functions become vGPUs."""

    def free(self) -> VendorVgpu | None:
        """A virtual function that has no type, None if there is none."""
        can_have = (
            each
            for each in virtual_functions(self._files, self.path)
            if self._files.has(each.path / "nvidia/current_vgpu_type")
        )
        return next((each for each in can_have if not each.exists()), None)

    def creatable(self) -> dict[str, str]:
        """The names of the types that there is room for, by their ids; none without virtual functions."""
        function = self.free()
        if function is None:
            return {}
        lines = function.attribute("nvidia/creatable_vgpu_types").splitlines()[1:]
        return {number.strip(): title.strip() for number, _, title in (line.partition(":") for line in lines)}

    @property
    def types(self) -> Named[VgpuType]:
        return Named(lambda: list(self.creatable()), self._type, "type")

    def _type(self, name: str) -> VgpuType | None:
        title = self.creatable().get(name)
        return None if title is None else VendorType(self, name, title)

    @property
    def vgpus(self) -> Named[Vgpu]:
        return Named(lambda: [each.name for each in self._made()], self._vgpu, "vGPU")

    def _made(self) -> list[VendorVgpu]:
        return [
            each for each in virtual_functions(self._files, self.path) if type_of(self._files, each) != "0"
        ]

    def _vgpu(self, name: str) -> Vgpu | None:
        return next((each for each in self._made() if each.name == name), None)

    def create(
        self, type: str, uuid: str | None = None, *, instance: int | None = None, **resources: str | int
    ) -> VendorVgpu:
        """Give a virtual function the type: by its id, or by its name if that is the only one.  All virtual
        functions are enabled first if there are none.

        Raises KeyError if there is no room for the type, ValueError for what this framework does not have (a
        UUID, an instance, resources), and OSError as the store does: ENOSPC if no virtual function is
        free."""
        if uuid is not None or instance is not None or resources:
            raise ValueError("NVIDIA's framework gives vGPUs neither a UUID nor an instance nor resources")
        self.enable()
        function = self.free()
        if function is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        function.set("nvidia/current_vgpu_type", self.types[self.number_of(type)].name)
        return function

    def enable(self) -> None:
        """Enable all virtual functions if there are none."""
        if self.attribute("sriov_numvfs") == "0":
            self.set("sriov_numvfs", self.attribute("sriov_totalvfs"))

    def number_of(self, type: str) -> str:
        """The id of the only type with this name that there is room for, otherwise the name."""
        named = [number for number, title in self.creatable().items() if title == type]
        return named[0] if len(named) == 1 else type


def parents(files: Files) -> Named[Parent]:
    """The parents of a lab, by name."""
    return Named(lambda: _names(files), lambda name: _find(files, name), "parent")


def parent_with(files: Files, type: str) -> Parent:
    """The first parent that has the type.  If there is none, the virtual functions of GPUs with NVIDIA's
    framework are enabled, because they have the list of types.  Raises KeyError."""
    found = list(parents(files).values())
    vendors = [each for each in found if isinstance(each, VendorParent)]
    for parent in found:
        if type in parent.types:
            return parent
    for vendor in vendors:
        vendor.enable()
        if vendor.number_of(type) in vendor.types:
            return vendor
    types = ", ".join(name for each in found for name in each.types) or "none"
    raise KeyError(f"no parent has the type {type} (there is {types})")


def _names(files: Files) -> list[str]:
    functions = files.root / FUNCTIONS
    vendors = [name for name in files.names(functions) if files.has(functions / name / PLACEMENT)]
    return sorted({*files.names(files.root / CLASS), *vendors})


def _find(files: Files, name: str) -> Parent | None:
    if "/" in name or not name.strip("."):
        return None
    kinds: tuple[tuple[Path, str, Callable[[Files, Path], Parent]], ...] = (
        (files.root / FUNCTIONS / name, PLACEMENT, VendorParent),
        (files.root / CLASS / name, TYPES, MdevParent),
    )
    found = (kind(files, path.resolve()) for path, mark, kind in kinds if files.has(path / mark))
    return next(found, None)
