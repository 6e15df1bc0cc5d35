# SPDX-License-Identifier: Apache-2.0
"""The models of a lab, and the directories that their devices have.  Trio thread, before the lab is shown."""

from __future__ import annotations

from collections.abc import Iterator

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.spec import Framework, FunctionSpec, LabSpec
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.sysfs.mdev import MdevDir
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.nvidia import VendorFunctionDir, VendorVfDir
from vfsfuse.sysfs.parent import ParentFunctionDir, PhysicalFunctionDir
from vfsfuse.sysfs.sriov import SriovFunctionDir, SriovParentDir, VirtualFunctionDir


def check_models(spec: LabSpec) -> None:
    """Raise ValueError, with a remedy, when a model declares an attribute whose name is taken in the
    directory of its devices: otherwise that would be found when somebody looks at one."""
    for directory, model in _directories(spec):
        directory_class(directory, model)


def _directories(spec: LabSpec) -> Iterator[tuple[type[Kobject], type[PciDevice]]]:
    """The kinds of directories that devices of the lab have, each with the model of the device."""
    for type_ in (type_ for parent in spec.parents for type_ in parent.types):
        yield MdevDir, type_.model
    for function in spec.all_functions:
        if function.model is not None:
            yield physical_directory(function), function.model
        if function.vf is not None:
            yield virtual_directory(function), function.vf.model


def physical_directory(spec: FunctionSpec) -> type[PhysicalFunctionDir]:
    """The kind of directory that a physical function has which is no bridge."""
    if spec.parent is None:
        return PhysicalFunctionDir if spec.vf is None else SriovFunctionDir
    if spec.parent.framework is Framework.NVIDIA:
        return VendorFunctionDir
    return ParentFunctionDir if spec.vf is None else SriovParentDir


def virtual_directory(physical: FunctionSpec) -> type[VirtualFunctionDir]:
    """The kind of directory that the virtual functions of a physical one have."""
    vendor = physical.parent is not None and physical.parent.framework is Framework.NVIDIA
    return VendorVfDir if vendor else VirtualFunctionDir
