# SPDX-License-Identifier: Apache-2.0
"""Parents with NVIDIA's framework: the table ``[parents.<name>.nvidia]``, their virtual functions and types.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from devmodel.device.identity import IDS, with_ids
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.spec import Framework, NvidiaSpec, ParentSpec, PlacementMode, VfSpec
from devmodel.lifecycle.vendor import catalogue
from devmodel.models.vendorvf import VendorVf
from vfsfuse.labfile.hardware import Fields
from vfsfuse.labfile.mistakes import Keys
from vfsfuse.labfile.reading import Found, Reading, fields
from vfsfuse.labfile.schema import NVIDIA

MOST_CATALOGUE = 4096
"""Bytes of a catalogue with its header: an attribute is a page."""
_NUMBER = re.compile(r"[0-9]{1,9}$", re.ASCII)


def read_framework(reading: Reading, found: Found, keys: Keys) -> Fields:
    """The fields of a parent of kind "gpu" that say how it gives its vGPUs to VFIO."""
    framework: Framework = found.get("framework", Framework.MDEV)
    members: Fields = {"framework": framework, "placement": found.get("placement")}
    if members["placement"] is PlacementMode.HETEROGENEOUS and "slots" not in found:
        reading.note((*keys, "slots"), "is missing: places are counted in slots (add it)")
    if framework is not Framework.NVIDIA:
        if "nvidia" in found:
            reading.note((*keys, "nvidia"), 'is for framework = "nvidia" (give it that, or leave it out)')
        return members
    members["placement"] = found.get("placement", PlacementMode.HOMOGENEOUS)
    if "vfs" not in found:
        reading.note((*keys, "vfs"), "is missing: virtual functions are what becomes vGPUs (add it)")
    if "vf_memory" in found:
        why = "is for other frameworks: a virtual function gets its memory with a type (leave it out)"
        reading.note((*keys, "vf_memory"), why)
    settings = reading.table(found.get("nvidia", {}), NVIDIA, (*keys, "nvidia"))
    return {**members, "nvidia": NvidiaSpec(**fields(settings, NVIDIA))}


def vendor_vf(vf: VfSpec, physical: type[PciDevice], named: bool) -> VfSpec:
    """The virtual functions of such a parent: each has its memory with its type. Unless a model is ``named``,
    they look like the physical function."""
    model = vf.model
    if not named:
        ids = {key: getattr(physical.identity, key) for key in IDS}
        model = with_ids(VendorVf, ids)
    return replace(vf, model=model, memory=None)


def type_number(reading: Reading, name: str, found: Mapping[str, Any], keys: Keys) -> int:
    """The id of a type: its key ``id``, or the number at the end of its name."""
    if "id" in found:
        return int(found["id"])
    ending = _NUMBER.search(name)
    if ending is None or not int(ending[0]):
        reading.fail((*keys, "id"), f"is missing, and {name!r} does not end in a number (add it)")
    return int(ending[0])


def usual_ids(physical: type[PciDevice], number: int) -> dict[str, int]:
    """The ids by which a client knows the type of a vGPU: the GPU's vendor, and the type's number."""
    return {"subsystem_vendor": physical.identity.vendor, "subsystem_device": number & 0xFFFF}


def check_types(reading: Reading, parent: ParentSpec, keys: Keys) -> None:
    """Whether the types of a parent can be told apart by their ids, and can be placed."""
    vendor = parent.framework is Framework.NVIDIA
    seen: dict[int, str] = {}
    for spec in parent.types:
        here = (*keys, "types", spec.name)
        if vendor and spec.number in seen:
            why = f"is {spec.number}, that of {seen[spec.number]!r} too (give another)"
            reading.note((*here, "id"), why)
        seen[spec.number] = spec.name
        room = (parent.slots or 0) - spec.slots
        if spec.starts is not None and any(start > room for start in spec.starts):
            why = f"has a place that ends behind the parent's slots (begin at {room} at most)"
            reading.note((*here, "starts"), why)
    if vendor and len(catalogue(parent.types).encode()) > MOST_CATALOGUE:
        why = f"give a catalogue of more than {MOST_CATALOGUE} bytes, a page (give fewer, or shorter names)"
        reading.note((*keys, "types"), why)
