# SPDX-License-Identifier: Apache-2.0
"""Checks of a lab as a whole: what its parts may not have twice, and whether all buses have room.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`. Every part of the lab has been read without error.
"""

import re

from devmodel.lifecycle.bridge import Places, place_functions
from devmodel.lifecycle.netdev import LOOPBACK, MAX_NAME, NAME, all_names
from devmodel.lifecycle.slots import absent_at_first, slot_ports, slot_problems
from devmodel.lifecycle.spec import Framework, FunctionSpec, LabSpec
from vfsfuse.labfile import hwvalues
from vfsfuse.labfile.mistakes import Keys, with_remedy
from vfsfuse.labfile.nodes import check_near
from vfsfuse.labfile.reading import Reading
from vfsfuse.labfile.units import check_units

_ADDRESS = re.compile(hwvalues.ADDRESS)


def check_lab(reading: Reading, lab: LabSpec) -> None:
    """Note what the parts of a lab cannot have together."""
    if not lab.parents and not lab.functions and "parents" not in reading.source.content:
        reading.note(
            (), 'has no functions (add [functions."0000:01:00.0"], or [parents] for an empty machine)'
        )
    _check_addresses(reading, lab)
    _check_nodes(reading, lab)
    _check_interfaces(reading, lab)
    _check_groups(reading, lab)
    _check_frameworks(reading, lab)
    reading.mistakes.check()
    places = _check_places(reading, lab)
    check_units(reading, lab, places.buses)


def _table(spec: FunctionSpec) -> Keys:
    """Where a function stands, as far as a pattern does not hide it."""
    return ("functions" if spec.parent is None else "parents", spec.address)


def _check_addresses(reading: Reading, lab: LabSpec) -> None:
    parents = {parent.name for parent in lab.parents if parent.bdf is not None}
    for spec in lab.functions:
        if spec.address in parents:
            reading.note(_table(spec), "is a parent, too (leave one of them out)")


def _check_nodes(reading: Reading, lab: LabSpec) -> None:
    functions = (((*_table(spec), "numa_node"), spec.numa_node) for spec in lab.all_functions)
    roots = ((("roots", root.bus, "numa_node"), root.numa_node) for root in lab.roots)
    check_near(reading, lab.nodes, (*functions, *roots))


def _check_interfaces(reading: Reading, lab: LabSpec) -> None:
    owner = {LOOPBACK: "the machine itself"}
    for spec in lab.all_functions:
        for virtual, name in all_names(spec):
            keys = ("vf", "net") if virtual else ("net",)
            if NAME.fullmatch(name) is None:
                why = f"{name!r} of a virtual function is longer than {MAX_NAME} characters (give names)"
                reading.note((*_table(spec), *keys), why)
                break
            if name in owner:
                why = f"{name!r} is an interface of {owner[name]}, too (name it otherwise)"
                reading.note((*_table(spec), *keys), why)
            owner[name] = spec.address


def _check_groups(reading: Reading, lab: LabSpec) -> None:
    for spec in lab.all_functions:
        if spec.group is not None and not spec.iommu:
            why = "is for functions behind an IOMMU (leave out one of the two)"
            reading.note((*_table(spec), "group"), why)
    owner: dict[str | int | None, str] = {spec.group: spec.address for spec in lab.all_functions}
    for spec in lab.all_functions:
        if spec.vf is not None:
            owner.update(dict.fromkeys(spec.vf.groups, f"a virtual function of {spec.address}"))
    for number, vgpu in enumerate(lab.vgpus):
        if vgpu.group is not None and vgpu.group in owner:
            why = f"is the group of {owner[vgpu.group]}, too (a vGPU is alone in its group: give another)"
            reading.note(("vgpus", str(number), "group"), why)
        owner[vgpu.group] = vgpu.name


def _check_frameworks(reading: Reading, lab: LabSpec) -> None:
    """Whether the lab has the bus that its parents need."""
    if lab.mdev:
        return
    for parent in lab.parents:
        if parent.framework is Framework.MDEV:
            why = "makes mediated devices, which this lab has no bus for"
            remedy = 'give it framework = "nvidia"' if parent.bdf is not None else "take it out"
            reading.note(("parents", parent.name), f"{why} ({remedy}, or mdev = false out of [mount])")


def _check_places(reading: Reading, lab: LabSpec) -> Places:
    """Whether all buses have room."""
    try:
        places = place_functions(lab.all_functions, lab.roots)
    except ValueError as error:
        reading.fail(*_placed(lab, str(error)))
    tables = {spec.address: _table(spec) for spec in lab.all_functions}
    for address, why in slot_problems(lab.all_functions, slot_ports(places.buses)):
        reading.note((*tables[address], "slot"), why)
    absent = absent_at_first(lab.all_functions)
    for number, vgpu in enumerate(lab.vgpus):
        if vgpu.parent in absent:
            why = f"{vgpu.parent} is not plugged in at the start (plug it in, or take the vGPU out)"
            reading.note(("vgpus", str(number), "parent"), why)
    return places


def _placed(lab: LabSpec, why: str) -> tuple[Keys, str]:
    """The place in the lab file, and the text, of an error of the placing of functions. It names addresses,
    and most name the remedy."""
    tables = {spec.address: _table(spec) for spec in lab.all_functions}
    named = next((each for each in _ADDRESS.findall(why) if each in tables), "")
    keys = tables.get(named, ("parents",) if lab.parents else ("functions",))
    return keys, with_remedy(why, "give fewer, or another address")
