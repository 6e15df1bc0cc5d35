# SPDX-License-Identifier: Apache-2.0
"""What a lab has from the start besides its functions and parents: virtual functions that are enabled, and
vGPUs.

State: none; called once, on the thread that makes the lab, when the lab's observer can show them.
"""

from __future__ import annotations

import errno

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import SpecError, VgpuSpec
from devmodel.lifecycle.vendor import VendorVgpu, vgpu_of

_REMEDIES = {
    errno.EEXIST: "give it another instance or name",
    errno.ENODEV: "have the parent bound to its host driver, and its virtual functions enabled",
    errno.ENOSPC: "give the parent more, or take one out",
}


def populate(lab: Lab) -> None:
    """Make all of it. Raises :class:`SpecError` for the first that cannot be."""
    for function in list(lab.drivers.functions.values()):
        if isinstance(function, PhysicalFunction) and function.spec.vf is not None:
            _enable(lab, function, function.spec.vf.enabled)
    for spec in lab.spec.vgpus:
        _create(lab, spec)


def _enable(lab: Lab, function: PhysicalFunction, count: int) -> None:
    if not count:
        return
    try:
        lab.sriov.start(function, count)
    except OSError as error:
        table = "functions" if function.spec.parent is None else "parents"
        place = f'{lab.spec.source}: {table}."{function.name}".vf.enabled'
        raise SpecError(f"{place}: {error.strerror} (give fewer)") from error


def _create(lab: Lab, spec: VgpuSpec) -> None:
    try:
        type_ = lab.parents[spec.parent].types[spec.type]
        if spec.uuid is not None:
            lab.create(type_, spec.uuid, spec.instance, spec.name, spec.overrides)
        else:
            lab.vendor.set_type(_vgpu(lab, spec), type_.spec.number)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "take it out")
        raise SpecError(f"{spec.place}: vGPU {spec.name}: {error.strerror} ({remedy})") from error
    except ValueError as error:
        raise SpecError(f"{spec.place}: vGPU {spec.name}: {error} (take it out, or change it)") from error


def _vgpu(lab: Lab, spec: VgpuSpec) -> VendorVgpu:
    """The virtual function that is to be the vGPU. Raises ``OSError(ENODEV)`` when it cannot be one."""
    function = lab.drivers.find(spec.parent)
    vfs = function.vfs if isinstance(function, PhysicalFunction) else []
    vgpu = vgpu_of(vfs[spec.vf]) if spec.vf is not None and spec.vf < len(vfs) else None
    if vgpu is None:
        raise OSError(errno.ENODEV, f"virtual function {spec.vf} is not enabled, or has no host driver")
    return vgpu
