# SPDX-License-Identifier: Apache-2.0
"""The models of a lab, and the directories that their devices have.  Trio thread, before the lab is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from devmodel.device.migration import Migrates
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.spec import Framework, FunctionSpec, LabSpec, SpecError
from ioctl_shim.abi import LabFlag
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.sysfs.mdev import MdevDir
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.nvidia import VendorFunctionDir, VendorVfDir, VendorVgpuDir
from vfsfuse.sysfs.parent import ParentFunctionDir, PhysicalFunctionDir
from vfsfuse.sysfs.sriov import SriovFunctionDir, SriovParentDir, VirtualFunctionDir

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def check_models(spec: LabSpec) -> None:
    """Raise SpecError when a model declares an attribute whose name is taken in the directory of its devices:
    otherwise that would be found when somebody looks at one."""
    for place, directory, model in _directories(spec):
        try:
            directory_class(directory, model)
        except ValueError as error:
            raise SpecError(f"{spec.source}: {place}: {error}") from error


def lab_flags(spec: LabSpec) -> LabFlag:
    """What a run has to know of the lab."""
    migrates = any(issubclass(model, Migrates) for _, _, model in _directories(spec))
    return LabFlag.MIGRATES if migrates else LabFlag.NONE


def _directories(spec: LabSpec) -> Iterator[tuple[str, type[Kobject], type[PciDevice]]]:
    """The kinds of directories that devices of the lab have, each with its place in the lab file and the
    model of the device."""
    for parent in spec.parents:
        own = MdevDir if parent.framework is Framework.MDEV else VendorVgpuDir
        for type_ in parent.types:
            yield f"parents.{_quoted(parent.name)}.types.{_quoted(type_.name)}", own, type_.model
    for function in spec.all_functions:
        table = "functions" if function.parent is None else "parents"
        place = f"{table}.{_quoted(function.name)}"
        if function.model is not None:
            yield place, physical_directory(function), function.model
        if function.vf is not None:
            yield f"{place}.vf", virtual_directory(function), function.vf.model


def _quoted(name: str) -> str:
    """A name as TOML spells it in a dotted path: it has no quotes in it."""
    return name if _BARE_KEY.fullmatch(name) else f'"{name}"'


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
