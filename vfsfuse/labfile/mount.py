# SPDX-License-Identifier: Apache-2.0
"""The settings of a whole lab: the top of a lab file, ``[models]``, ``[mount]`` and ``[iommu]``.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

from typing import Any

from devmodel.lifecycle.spec import IommuSpec, UnitSpec
from vfsfuse.labfile import values
from vfsfuse.labfile.machine import read_units
from vfsfuse.labfile.reading import Found, Reading, fields
from vfsfuse.labfile.schema import IOMMU, LAB, MODULES, MOUNT

RESERVED_VENDORS = ("vgpu_start", "vgpu_shutdown")
"""Files of sys/class/vgpu. The vendor's directory lies beside them, and must have another name."""


def read_top(reading: Reading, top: Found) -> dict[str, Any]:
    """Fields of the LabSpec that are settings. The lab file's own models can be found after this."""
    if top.get("vendor") in RESERVED_VENDORS:
        reading.note(("vendor",), f"{top['vendor']!r} is a file of sys/class/vgpu (choose another)")
    for name, place in top.get("models", {}).items():
        with reading.noted():
            _own_model(reading, name, place)
    mount = reading.attempt(reading.table, top.get("mount", {}), MOUNT, ("mount",)) or {}
    return {**fields(top, LAB), **fields(mount, MOUNT)}


def read_modules(reading: Reading, content: object) -> dict[str, Any]:
    """Parameters of modules, by their names in VfioModule."""
    tables = reading.attempt(reading.table, content, MODULES, ("modules",)) or {}
    values: dict[str, Any] = {}
    for module, table in tables.items():
        schema = MODULES[module].table or {}
        found = reading.attempt(reading.table, table, schema, ("modules", module)) or {}
        values |= fields(found, schema)
    return values


def read_iommu(reading: Reading, content: object) -> tuple[IommuSpec, tuple[UnitSpec, ...]]:
    """What the IOMMUs can do, and which units there are."""
    found = reading.attempt(reading.table, content, IOMMU, ("iommu",)) or {}
    return IommuSpec(**fields(found, IOMMU)), read_units(reading, found.get("units", {}))


def _own_model(reading: Reading, name: str, place: object) -> None:
    keys = ("models", name)
    try:
        reading.models.add(name, values.text.read(place), reading.folder(keys))
    except ValueError as error:
        reading.unusable.add(name)
        reading.fail(keys, str(error))
