# SPDX-License-Identifier: Apache-2.0
"""nvidia/: the files by which virtual functions become vGPUs in NVIDIA's vendor-specific VFIO, and the
directories of the functions that have them (devmodel.lifecycle.vendor).

show() is called on the trio thread and on the device lane, store() on the trio thread.  Source: listings of
machines, and the programs that read and write the files; docs/frameworks.md says what is known.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from devmodel.device.display import Display
from devmodel.lifecycle.physical import PhysicalFunction, PhysicalParent, VirtualFunction
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import PlacementMode
from devmodel.lifecycle.vendor import (
    NOT_APPLICABLE,
    VendorFramework,
    VendorVgpu,
    catalogue,
    check_typed,
    places_of,
    vgpu_of,
)
from vfsfuse.kernfs.groups import AttributeGroup, Group
from vfsfuse.kernfs.members import attribute, snapshot
from vfsfuse.sysfs.kstrtox import parse_decimal
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.screen import picture
from vfsfuse.sysfs.sriov import SriovFunctionDir, VirtualFunctionDir
from vfsfuse.sysfs.vgpu_resources import ParentResources, VgpuResources

VGPU_DIR = "vgpu"
"""The directory of a virtual function that has what vfsfuse knows of its vGPU."""


def _all_files(group: NvidiaFiles) -> bool:
    return group.parent_device.spec.nvidia.files > 2


class NvidiaFiles(AttributeGroup):
    """<function>/nvidia: the vGPU that a virtual function is. It is present while the virtual function and
    its physical one are bound to the host driver, in a GPU with the framework of NVIDIA."""

    __slots__ = ()
    owner: VendorVfDir

    @property
    def vgpu(self) -> VendorVgpu:
        """Raises OSError(ENODEV) when the host driver has left."""
        found = self.owner.vgpu
        if found is None:
            raise OSError(errno.ENODEV, f"{self.owner.name} has no vGPU")
        return found

    @property
    def parent_device(self) -> PhysicalParent:
        """The GPU."""
        return self.vgpu.parent

    @property
    def vendor(self) -> VendorFramework:
        """The framework of the lab."""
        return self.owner.view.lab.vendor

    @attribute(of_driver=True)
    def creatable_vgpu_types(self) -> str:
        """The types that the virtual function can become: a header, and a line `<id> : <name>` for each that
        the GPU has room for. While it has a type there is the header alone."""
        return catalogue(self.vendor.creatable(self.parent_device, self.vgpu))

    @attribute(0o644, of_driver=True)
    def current_vgpu_type(self) -> int:
        """The id of its type, 0 for none."""
        found = self.vgpu.type
        return 0 if found is None else found.number

    @current_vgpu_type.store
    def _store_type(self, text: str) -> None:
        """Makes it a vGPU of the type with this id; 0 takes the type away. EINVAL: no decimal number; ERANGE:
        one of more than 64 bits; EBUSY: a client uses it; EPERM: an id while it has a type, or 0 while it has
        none; EIO: the GPU has no such type, or no room for it."""
        self.vendor.set_type(self.vgpu, parse_decimal(text))

    @attribute(0o644, when=_all_files, of_driver=True)
    def vgpu_params(self) -> str:
        """What was written to it, an empty line if there is nothing."""
        return f"{self.vgpu.params}\n"

    @vgpu_params.store
    def _store_params(self, text: str) -> None:
        """Keeps the text, such as `frame_rate_limiter=0`, which has no effect here; a blank clears it. E2BIG:
        more than 1024 bytes; ENXIO: it has no type; EPERM: a client uses it."""
        self.vendor.set_params(self.vgpu, text)

    @attribute(0o644, when=_all_files, of_driver=True)
    def gpu_instance_id(self) -> str:
        """`Not Applicable`: the GPU is not partitioned (MIG). ENXIO: it has no type."""
        check_typed(self.vgpu)
        return NOT_APPLICABLE

    @gpu_instance_id.store
    def _store_instance(self, text: str) -> None:
        """EINVAL: the GPU has no instances. ENXIO: it has no type."""
        check_typed(self.vgpu)
        raise ValueError(f"there is no GPU instance {text}")

    @attribute(0o644, when=_all_files, of_driver=True)
    def placement_id(self) -> str:
        """The first slot of its place on the GPU; `Not Applicable` where all vGPUs are of one size. ENXIO: it
        has no type."""
        check_typed(self.vgpu)
        start = places_of(self.parent_device).start_of(self.vgpu)
        return NOT_APPLICABLE if start is None else str(start)

    @placement_id.store
    def _store_placement(self, text: str) -> None:
        """Moves it to the place that begins at this slot. EINVAL: no number, or no vGPU of its type begins
        there; EBUSY: the place is taken, or a client uses it; ENXIO: it has no type."""
        self.vendor.move(self.vgpu, parse_decimal(text))

    @attribute(0o644, when=_all_files, of_driver=True)
    def warm_update(self) -> int:
        """Whether the driver may be exchanged while its client is suspended: 1 or 0."""
        return int(self.vgpu.warm_update)

    @warm_update.store
    def _store_warm_update(self, text: str) -> None:
        """Sets it, without effect here. EINVAL: neither 0 nor 1."""
        value = parse_decimal(text)
        if value not in (0, 1):
            raise ValueError(f"{value} is neither 0 nor 1")
        self.vgpu.warm_update = bool(value)


def _has_display(directory: VendorVfDir) -> bool:
    type_ = None if directory.vgpu is None else directory.vgpu.type
    return type_ is not None and issubclass(type_.model, Display)


class VendorVfDir(VirtualFunctionDir):
    """<function>: a virtual function of a GPU with the framework of NVIDIA."""

    __slots__ = ()
    virtual: VirtualFunction

    @property
    def vgpu(self) -> VendorVgpu | None:
        """What clients open of it, None while the host driver does not keep it."""
        return vgpu_of(self.virtual)

    nvidia = Group("nvidia", NvidiaFiles, when=lambda self: self.vgpu is not None)

    @snapshot("screen.png", when=_has_display)
    def screen(self) -> bytes:
        """The picture that its vGPU shows, as a PNG; present while its type has a display. ENODATA: it shows
        nothing. A file of vfsfuse's own."""
        if self.vgpu is None:
            raise OSError(errno.ENODEV, f"{self.name} is no vGPU")
        return picture(self.vgpu.device)

    screen.name_ns = 0  # it comes and goes with the type


class VendorVgpuDir(VgpuResources):
    """<function>/vgpu: what a virtual function has as a vGPU, in a GPU with the framework of NVIDIA. It is
    present while it has a type, and a directory of vfsfuse's own."""

    __slots__ = ("assignable",)

    def __init__(self, vgpu: VendorVgpu) -> None:
        super().__init__(VGPU_DIR)
        self.assignable = vgpu

    @property
    def vgpu(self) -> VendorVgpu:
        return self.assignable

    @property
    def share(self) -> Share:
        return self.assignable.share

    @property
    def options(self) -> Mapping[str, int]:
        """The options of its model."""
        return self.share.options


class PhysicalCatalogue(AttributeGroup):
    """The directory nvidia of a physical GPU; present if the lab file asks for it (`physical_catalogue`),
    while the GPU is bound to its host driver."""

    __slots__ = ()
    owner: VendorFunctionDir

    @attribute(of_driver=True)
    def creatable_vgpu_types(self) -> str:
        """The types that its virtual functions can become, as theirs."""
        return catalogue(self.owner.view.lab.vendor.creatable(self.owner.parent_device))


class VendorFunctionDir(SriovFunctionDir, ParentResources):
    """<function>: a physical GPU with the framework of NVIDIA."""

    __slots__ = ("parent_device",)
    parent_device: PhysicalParent

    def __init__(self, view: View, function: PhysicalFunction) -> None:
        super().__init__(view, function)
        if function.parent is None:
            raise ValueError(f"{function.name} is no parent")
        self.parent_device = function.parent

    nvidia = Group(
        "nvidia",
        PhysicalCatalogue,
        when=lambda self: (
            self.parent_device.spec.nvidia.physical_catalogue and self.parent_device.has_host_driver
        ),
    )

    @attribute(0o644)
    def vgpu_placement(self) -> str:
        """Which vGPUs can be beside one another: `homogeneous` if all must have the same video memory, or
        `heterogeneous`. A file of vfsfuse's own: NVIDIA has a command for it."""
        return places_of(self.parent_device).mode.value

    @vgpu_placement.store
    def _store_placement(self, text: str) -> None:
        """Sets it. EINVAL: another word, or places on a GPU without slots; EBUSY: there is a vGPU."""
        self.view.lab.vendor.set_mode(self.parent_device, PlacementMode(text))
