# SPDX-License-Identifier: Apache-2.0
"""The PCI functions of a lab file: the tables ``[functions."<address>"]``, whose address may be a pattern.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from devmodel.lifecycle.spec import FunctionSpec
from vfsfuse.labfile.addresses import addresses
from vfsfuse.labfile.hardware import Fields, check_vfs, read_function
from vfsfuse.labfile.include import NOTHING_THERE, is_absent
from vfsfuse.labfile.mistakes import Keys, with_remedy
from vfsfuse.labfile.reading import Found, Reading
from vfsfuse.labfile.schema import FUNCTION

MAX_FUNCTIONS = 1 << 18
"""Addresses that the tables of a lab file stand for, so that patterns cannot fill the memory."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A table of ``[functions]``, and the addresses that it stands for."""

    keys: Keys
    names: list[str]
    found: Found


def read_functions(reading: Reading, tables: Mapping[str, object]) -> tuple[FunctionSpec, ...]:
    """All functions that can be read. An address that several tables stand for takes the keys of all of them;
    the table of the fewest addresses wins."""
    entries, removed = _entries(reading, tables)
    standing: dict[str, tuple[_Entry, ...]] = {}
    for entry in sorted(entries, key=lambda entry: -len(entry.names)):
        for name in entry.names:
            standing[name] = (*standing.get(name, ()), entry)
    for keys, names in removed:
        taken = [standing.pop(name) for name in names if name in standing]
        if not taken and not reading.mistakes.lines:
            reading.note((*keys, "absent"), NOTHING_THERE)
    made: dict[tuple[int, ...], Fields | None] = {}
    specs = []
    for name in [name for entry in entries for name in entry.names]:
        layers = standing.pop(name, ())
        if not layers:
            continue
        identity = tuple(map(id, layers))
        if identity not in made:
            made[identity] = reading.attempt(_read, reading, name, layers)
        members = made[identity]
        if members is not None:
            specs.append(FunctionSpec(name, **members))
    return tuple(specs)


def _entries(
    reading: Reading, tables: Mapping[str, object]
) -> tuple[list[_Entry], list[tuple[Keys, list[str]]]]:
    """The tables of functions, and the addresses that tables take away."""
    entries: list[_Entry] = []
    removed: list[tuple[Keys, list[str]]] = []
    count = 0
    for name, content in tables.items():
        keys = ("functions", name)
        try:
            names = addresses(name)
        except ValueError as error:
            reading.note(keys, with_remedy(str(error), "such as 0000:65:00.1"))
            reading.attempt(reading.table, content, FUNCTION, keys)
            continue
        count += len(names)
        if count > MAX_FUNCTIONS:
            reading.fail(
                keys, f"comes to more than {MAX_FUNCTIONS} addresses with those before (take it out)"
            )
        found = reading.attempt(reading.table, content, FUNCTION, keys)
        if is_absent(content):
            removed.append((keys, names))
        elif found is not None:
            entries.append(_Entry(keys, names, found))
    return entries, removed


def _read(reading: Reading, name: str, layers: tuple[_Entry, ...]) -> Fields:
    """The fields of the functions that these tables stand for, of which ``name`` is one."""
    found = layers[0].found
    for layer in layers[1:]:
        found = _layered(found, layer.found)
    keys = layers[-1].keys
    members = read_function(reading, found, keys)
    check_vfs(reading, FunctionSpec(name, **members), keys)
    return members


def _layered(below: Found, above: Found) -> Found:
    """Two tables merged, of which ``above`` wins."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _layered(below[key], above[key])
    return merged
