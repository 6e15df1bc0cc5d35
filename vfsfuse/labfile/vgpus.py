# SPDX-License-Identifier: Apache-2.0
"""The vGPUs that exist from the start: the tables ``[[vgpus]]`` of a lab file.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`. Whether there is room for each is found out when the
lab makes them (devmodel.lifecycle.initial).
"""

from collections.abc import Mapping, Sequence

from devmodel.lifecycle.spec import Framework, ParentSpec, VgpuSpec
from vfsfuse.labfile.mistakes import Keys, Mistake, place_of
from vfsfuse.labfile.reading import Found, Reading, fields
from vfsfuse.labfile.schema import OVERRIDES, VGPU


def read_vgpus(
    reading: Reading, entries: Sequence[object], parents: Sequence[ParentSpec], named: Mapping[str, object]
) -> tuple[VgpuSpec, ...]:
    """All vGPUs that can be read. ``parents`` could be read, ``named`` are all that the file has."""
    by_name = {parent.name: parent for parent in parents}
    specs: list[VgpuSpec] = []
    names: dict[str, int] = {}
    for number, content in enumerate(entries):
        keys = ("vgpus", str(number))
        spec = reading.attempt(_vgpu, reading, content, keys, by_name, named)
        if spec is None:
            continue
        first = names.setdefault(spec.name, number)
        if first != number:
            reading.note(
                keys, f"is called {spec.name} as vgpus.{first} is (give another uuid, instance or name)"
            )
        specs.append(spec)
    return tuple(specs)


def _vgpu(
    reading: Reading,
    content: object,
    keys: Keys,
    parents: Mapping[str, ParentSpec],
    named: Mapping[str, object],
) -> VgpuSpec:
    found = reading.table(content, VGPU, keys)
    parent = parents.get(found["parent"])
    if parent is None and found["parent"] in named:
        raise Mistake  # noted there
    if parent is None:
        there_is = ", ".join(named) or "none"
        reading.fail((*keys, "parent"), f"there is no parent {found['parent']!r} (there is {there_is})")
    found["type"] = _type(reading, found["type"], parent, keys)
    if parent.framework is Framework.NVIDIA:
        _check_vendor(reading, found, parent, keys)
    else:
        _check_mediated(reading, found, keys)
    overrides = {key: found[key] for key in OVERRIDES if key in found}
    place = place_of(reading.source.file(keys), keys)
    return VgpuSpec(**fields(found, VGPU), overrides=overrides, place=place)


def _type(reading: Reading, named: str, parent: ParentSpec, keys: Keys) -> str:
    """The name of the type that is named, by its name or its id."""
    for spec in parent.types:
        if named == spec.name or (spec.number and named == str(spec.number)):
            return spec.name
    there_is = ", ".join(spec.name for spec in parent.types)
    reading.fail((*keys, "type"), f"{parent.name} has no type {named!r} (it has {there_is})")


def _check_mediated(reading: Reading, found: Found, keys: Keys) -> None:
    """Give a mediated device its name."""
    if "vf" in found:
        reading.note((*keys, "vf"), 'is for a parent with framework = "nvidia" (leave it out)')
    if "uuid" not in found:
        reading.fail((*keys, "uuid"), "is missing (add it)")
    uuid = str(found["uuid"])
    found.setdefault("name", f"{uuid}-{found['instance']}" if "instance" in found else uuid)


def _check_vendor(reading: Reading, found: Found, parent: ParentSpec, keys: Keys) -> None:
    """Name a vGPU that is a virtual function after that."""
    for key in ("uuid", "instance", "name", "group", *OVERRIDES):
        if key in found:
            reading.note((*keys, key), "is for mediated devices (leave it out)")
    if "vf" not in found:
        reading.fail((*keys, "vf"), "is missing (add it)")
    function = parent.function
    enabled = 0 if function is None or function.vf is None else function.vf.enabled
    if found["vf"] >= enabled:
        why = (
            f"virtual function {found['vf']} is not enabled (give the parent vf.enabled = {found['vf'] + 1})"
        )
        reading.note((*keys, "vf"), why)
    found["name"] = f"{parent.name}.vf{found['vf']}"
