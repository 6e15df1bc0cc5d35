# SPDX-License-Identifier: Apache-2.0
"""The parents of a lab file: the tables ``[parents.<name>]`` and ``[parents.<name>.types.<type>]``.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

from collections.abc import Mapping
from typing import Any

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.resources import Resolution, resolution_options
from devmodel.lifecycle.spec import PATH_NAME, ParentSpec, TypeSpec
from devmodel.lifecycle.vf import FIRST_OFFSET, MAX_VFS, VfLayout
from devmodel.models.registry import MODELS, PHYSICAL
from devmodel.pci.address import PciAddress
from vfsfuse.labfile import values
from vfsfuse.labfile.faults import Fault, Keys
from vfsfuse.labfile.reading import Found, Reading, fields
from vfsfuse.labfile.schema import PARENT, TYPE

RESERVED_DRIVERS = ("iommu", "mdev_bus", "net", "pci_bus", "pcieport", "vfio", "vfio-dev", "vfio-pci")
"""Directories of sys/class, and the PCI driver vfio-pci. A host driver must have another name."""

VF_KEYS = ("vfs", "vf_model", "vf_memory")
"""Keys of a parent that describe its virtual functions."""

OF_GPUS = {
    "iommu": 'only a "gpu" is behind an IOMMU or not (leave the key out)',
    "numa_node": 'only a "gpu" is near to a node (leave the key out)',
    "options": 'a parent of kind "virtual" has none (give them to its types)',
}
"""Keys of a "gpu", and why a parent of kind "virtual" has none of them."""


def read_parents(reading: Reading, tables: Mapping[str, object]) -> tuple[ParentSpec, ...]:
    """All parents that can be read."""
    specs = [reading.attempt(_parent, reading, name, table) for name, table in tables.items()]
    return tuple(spec for spec in specs if spec is not None)


def _parent(reading: Reading, name: str, content: object) -> ParentSpec:
    keys = ("parents", name)
    found, complete = reading.partial(content, PARENT, keys)
    kind = found.get("kind", "")
    if kind:
        with reading.noted():
            _check_name(reading, name, kind, keys)
    faults = len(reading.faults.lines)
    with reading.noted():
        _read_model(reading, found, kind, keys)
        if complete and kind == "gpu":
            reading.validate(found["model"], found.get("memory", 0), found.get("options", {}), keys)
    types = _types(reading, found, kind, keys)
    if not complete or len(reading.faults.lines) > faults:
        raise Fault
    spec = ParentSpec(name=name, types=types, bdf=name if kind == "gpu" else None, **fields(found, PARENT))
    _check_limits(reading, spec, keys)
    with reading.noted():
        _check_vfs(reading, spec, keys)
    return spec


def _check_name(reading: Reading, name: str, kind: str, keys: Keys) -> None:
    if kind == "gpu":
        try:
            PciAddress.parse(name)
        except ValueError:
            reading.fail(keys, 'the name of a "gpu" is its PCI address (such as "0000:86:00.0")')
    elif PATH_NAME.fullmatch(name) is None:
        reading.fail(keys, f"cannot name a parent ({values.NAME_HINT})")


def _read_model(reading: Reading, found: Found, kind: str, keys: Keys) -> None:
    """Replace the names of models by the models, and check the keys that depend on the kind."""
    if not kind:
        return
    is_gpu = kind == "gpu"
    driver = found.get("driver")
    if driver in RESERVED_DRIVERS or (driver == "vgpu" and not is_gpu):
        reading.note((*keys, "driver"), f"{driver!r} has a meaning of its own (choose another)")
    for key, why in OF_GPUS.items():
        if not is_gpu and key in found and found[key] is not True:
            reading.note((*keys, key), why)
    with reading.noted():
        _read_vf_model(reading, found, is_gpu, keys)
    named = found.pop("model", "gpu" if is_gpu else driver)
    if named is not None:
        found["model"] = reading.model(named, PHYSICAL if is_gpu else MODELS, (*keys, "model"))


def _read_vf_model(reading: Reading, found: Found, is_gpu: bool, keys: Keys) -> None:
    """Replace the name of the virtual functions' model by the model."""
    for key in VF_KEYS:
        if key in found and not (is_gpu and "vfs" in found):
            reading.note((*keys, key), 'is for a "gpu" with "vfs" (give it those, or leave the key out)')
    named = found.pop("vf_model", "vgpu")
    if "vfs" in found:
        found["vf_model"] = reading.model(named, MODELS, (*keys, "vf_model"))


def _check_vfs(reading: Reading, parent: ParentSpec, keys: Keys) -> None:
    if parent.vfs > MAX_VFS:
        reading.fail((*keys, "vfs"), f"is more than {MAX_VFS} (give fewer)")
    if parent.vf_memory > parent.memory:
        reading.fail((*keys, "vf_memory"), f"is more than the parent's {parent.memory} bytes (give less)")
    try:
        function = parent.function
        if function is not None and function.vf is not None:
            VfLayout(function, FIRST_OFFSET, reading.aperture)
    except ValueError as error:
        reading.fail((*keys, "vfs"), f"{error} (see vf_model and vf_memory)")


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


def _types(reading: Reading, found: Found, kind: str, keys: Keys) -> tuple[TypeSpec, ...]:
    """The types of a parent that can be read."""
    tables = found.pop("types", None)
    if tables == {}:
        reading.note((*keys, "types"), "is empty (a parent offers at least one type)")
    model = MODELS["vgpu"] if kind == "gpu" else found.get("model")
    specs = [
        reading.attempt(_type, reading, name, table, (*keys, "types", name), model)
        for name, table in (tables or {}).items()
    ]
    return tuple(spec for spec in specs if spec is not None)


def _type(
    reading: Reading, name: str, content: object, keys: Keys, model: type[PciDevice] | None
) -> TypeSpec:
    """One type. ``model`` is that of a type which names none, None if the parent's cannot be read."""
    if PATH_NAME.fullmatch(name) is None:
        reading.note(keys, f"cannot name a type ({values.NAME_HINT})")
    found = reading.table(content, TYPE, keys)
    named = found.pop("model", None)
    if named is not None:
        model = reading.model(named, MODELS, (*keys, "model"))
    found["options"] = _type_options(reading, found, keys)
    if model is None:
        raise Fault
    reading.validate(model, found.get("memory", 0), found["options"], keys)
    return TypeSpec(name=name, model=model, **fields(found, TYPE))


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
