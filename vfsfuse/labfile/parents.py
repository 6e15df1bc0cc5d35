# SPDX-License-Identifier: Apache-2.0
"""The parents of a lab file: the tables ``[parents.<name>]`` and ``[parents.<name>.types.<type>]``.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

from collections.abc import Mapping
from typing import Any

from devmodel.device.identity import with_ids
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.resources import Resolution, resolution_options
from devmodel.lifecycle.spec import PATH_NAME, Framework, FunctionSpec, ParentSpec, TypeSpec
from devmodel.models.registry import MODELS, PHYSICAL
from devmodel.pci.address import PciAddress
from vfsfuse.labfile import values
from vfsfuse.labfile.hardware import (
    RESERVED_DRIVERS,
    Fields,
    check_vfs,
    complete,
    own_fields,
    read_ids,
    read_model,
    take_serial,
)
from vfsfuse.labfile.include import NOTHING_THERE, is_absent
from vfsfuse.labfile.mistakes import Keys, Mistake
from vfsfuse.labfile.nvidia import check_types, read_framework, type_number, usual_ids, vendor_vf
from vfsfuse.labfile.reading import Found, Reading, fields
from vfsfuse.labfile.replay import NAME as REPLAY_NAME
from vfsfuse.labfile.replay import check_not_replay, replay
from vfsfuse.labfile.schema import PARENT, REPLAY, TYPE

VF_KEYS = ("vfs", "vf_model", "vf_memory")
"""Keys of a parent that describe its virtual functions."""

OF_GPUS = {
    "iommu": 'only a "gpu" is behind an IOMMU or not (leave the key out)',
    "numa_node": 'only a "gpu" is near to a node (leave the key out)',
    "options": 'a parent of kind "virtual" has none (give them to its types)',
}
"""Keys of a "gpu", and why a parent of kind "virtual" has none of them. Others are for functions."""

NO_VFS = 'is for a "gpu" with "vfs" (give it those, or leave the key out)'
OF_BOTH = ("absent", "kind", "driver", "model", "memory", "slots", "type_names", "types", *REPLAY)


def read_parents(reading: Reading, tables: Mapping[str, object]) -> tuple[ParentSpec, ...]:
    """All parents that can be read."""
    specs = [reading.attempt(_parent, reading, name, table) for name, table in tables.items()]
    return tuple(spec for spec in specs if spec is not None)


def _parent(reading: Reading, name: str, content: object) -> ParentSpec:
    keys = ("parents", name)
    if is_absent(content):
        reading.fail((*keys, "absent"), NOTHING_THERE)
    found, complete = reading.partial(content, PARENT, keys)
    kind = found.get("kind", "")
    if kind == "gpu":
        _check_address(reading, name, keys)
    elif kind and PATH_NAME.fullmatch(name) is None:
        reading.note(keys, f"cannot name a parent ({values.NAME_HINT})")
    before = len(reading.mistakes.lines)
    members: Fields | None = None
    if not complete:
        reading.note_below(found, PARENT, keys, without=("types", "bars"))
    if kind:
        read = _gpu if kind == "gpu" else _virtual
        members = reading.attempt(read, reading, found, keys, complete)
    own = None if members is None else members["model"]
    vendor = own if found.get("framework") is Framework.NVIDIA else None
    types = _types(reading, found, kind, keys, own, vendor)
    if members is None or not complete or len(reading.mistakes.lines) > before:
        raise Mistake
    if kind == "gpu":
        spec = _of_function(name, found, members, types)
        check_types(reading, spec, keys)
        check_vfs(reading, spec.function or FunctionSpec(name, None), keys)
    else:
        given = fields({key: found[key] for key in found if key in OF_BOTH}, PARENT)
        spec = ParentSpec(name=name, types=types, **given)
    _check_limits(reading, spec, keys)
    return spec


def _of_function(name: str, found: Found, members: Fields, types: tuple[TypeSpec, ...]) -> ParentSpec:
    """The parent that is a PCI function with these fields."""
    shared = members.pop("shared")
    return ParentSpec(
        name=name,
        kind="gpu",
        driver=found["driver"],
        types=types,
        memory=members.get("memory", 0),
        slots=found.get("slots"),
        hardware=FunctionSpec(name, **members),
        type_names=found.get("type_names", True),
        **shared,
    )


def _check_address(reading: Reading, name: str, keys: Keys) -> None:
    try:
        PciAddress.parse(name)
    except ValueError as error:
        reading.fail(keys, f'the name of a "gpu" is its PCI address: {error}')


def _gpu(reading: Reading, found: Found, keys: Keys, usable: bool) -> Fields:
    """The fields of the function that a "gpu" is, and in "shared" those of the parent. ``usable`` is whether
    all values could be read."""
    if found.get("driver") in RESERVED_DRIVERS:
        reading.note((*keys, "driver"), f"{found['driver']!r} has a meaning of its own (choose another)")
    for key in VF_KEYS:
        if key in found and "vfs" not in found:
            reading.note((*keys, key), NO_VFS)
    members = own_fields(found)
    members["model"] = read_model(reading, found, keys, "gpu", PHYSICAL)
    take_serial(members, found)
    members["shared"] = shared = read_framework(reading, found, keys)
    vendor = shared["framework"] is Framework.NVIDIA
    if usable and vendor and "vfs" in found:
        found["vf"] = {"driver": found["driver"], **found.get("vf", {})}
    if usable:
        complete(reading, members, found, keys)
        if vendor and "vf" in members:
            named = "vf_model" in found or "model" in found["vf"]
            members["vf"] = vendor_vf(members["vf"], members["model"], named)
    return members


def _virtual(reading: Reading, found: Found, keys: Keys, usable: bool) -> Fields:
    """The model of a "virtual" parent, and a look at keys that it cannot have."""
    driver = found.get("driver")
    if driver in RESERVED_DRIVERS or driver == "vgpu":
        reading.note((*keys, "driver"), f"{driver!r} has a meaning of its own (choose another)")
    for key in found:
        if key in VF_KEYS:
            reading.note((*keys, key), NO_VFS)
        elif key not in OF_BOTH and not (key == "iommu" and found[key]):
            reading.note((*keys, key), OF_GPUS.get(key, 'is for a "gpu", a PCI function (leave the key out)'))
    named = found.get("model", driver)
    if named is None:
        raise Mistake
    if named != REPLAY_NAME:
        check_not_replay(reading, found, keys)
        return {"model": reading.model(named, MODELS, (*keys, "model"))}
    types = found.get("types", {}).values()
    if "recording" not in found and all(isinstance(each, dict) and "model" in each for each in types):
        return {"model": None}  # each type has its own
    return {"model": replay(reading, {key: found[key] for key in found if key in REPLAY}, keys)}


def _check_limits(reading: Reading, parent: ParentSpec, keys: Keys) -> None:
    for spec in parent.types:
        where = (*keys, "types", spec.name)
        if spec.memory > parent.memory:
            why = f"is more than the parent's {parent.memory} bytes (give it more)"
            reading.note((*where, "memory"), why)
        if parent.slots is not None and spec.slots > parent.slots:
            reading.note((*where, "slots"), f"is more than the parent's {parent.slots} (give it more)")
        if not spec.memory and parent.slots is None and spec.instances is None:
            reading.note(where, "nothing bounds it (give it memory or instances, or the parent slots)")


# ---- types ----


def _types(
    reading: Reading,
    found: Found,
    kind: str,
    keys: Keys,
    own: type[PciDevice] | None,
    vendor: type[PciDevice] | None,
) -> tuple[TypeSpec, ...]:
    """The types that can be read of a parent whose model is ``own``, None if that cannot be read.
    ``vendor`` is as for :func:`_type`."""
    tables = found.pop("types", None)
    if tables == {}:
        reading.note((*keys, "types"), "is empty (a parent offers at least one type)")
    model = MODELS["vgpu"] if kind == "gpu" else own
    specs = [
        reading.attempt(_type, reading, name, table, (*keys, "types", name), model, vendor)
        for name, table in (tables or {}).items()
    ]
    return tuple(spec for spec in specs if spec is not None)


def _type(
    reading: Reading,
    name: str,
    content: object,
    keys: Keys,
    model: type[PciDevice] | None,
    vendor: type[PciDevice] | None,
) -> TypeSpec:
    """One type. ``model`` is that of a type which names none, None if the parent's cannot be read.
    ``vendor`` is the model of a parent with NVIDIA's framework."""
    if is_absent(content):
        reading.fail((*keys, "absent"), NOTHING_THERE)
    if PATH_NAME.fullmatch(name) is None:
        reading.note(keys, f"cannot name a type ({values.NAME_HINT})")
    found = reading.table(content, TYPE, keys)
    named = found.pop("model", None)
    if named == REPLAY_NAME:
        model = replay(reading, found, keys)
    elif named is not None:
        model = reading.model(named, MODELS, (*keys, "model"))
    if named != REPLAY_NAME:
        check_not_replay(reading, found, keys)
    found["options"] = _type_options(reading, found, keys)
    if model is None:
        raise Mistake
    reading.validate(model, found.get("memory", 0), found["options"], keys)
    number, ids = 0, read_ids(found)
    if vendor is not None:
        number = type_number(reading, name, found, keys)
        ids = usual_ids(vendor, number) | ids
    return TypeSpec(name=name, model=with_ids(model, ids), number=number, **fields(found, TYPE))


def _type_options(reading: Reading, found: Mapping[str, Any], keys: Keys) -> dict[str, int]:
    """The options of a type's model: its table of options, and the options that have keys of their own."""
    options = dict(found.get("options", {}))
    for key in ("weight", "frame_rate", "max_resolution"):
        if key in found:
            value = found[key]
            meant = resolution_options(value) if isinstance(value, Resolution) else {key: value}
            if meant.keys() & options.keys():
                reading.fail((*keys, key), "is among the options, too (leave one out)")
            options |= meant
    return options
