# SPDX-License-Identifier: Apache-2.0
"""The machine that the functions of a lab file are in: root buses and IOMMU units.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from devmodel.lifecycle.spec import PATH_NAME, RootSpec, UnitSpec
from vfsfuse.labfile import values
from vfsfuse.labfile.include import NOTHING_THERE, is_absent
from vfsfuse.labfile.mistakes import Keys
from vfsfuse.labfile.reading import Reading, fields
from vfsfuse.labfile.schema import ROOT, ROOT_NAMES, UNIT

S = TypeVar("S")


def read_roots(reading: Reading, tables: Mapping[str, object]) -> tuple[RootSpec, ...]:
    """The root buses that the file names."""
    return tuple(_each(reading, tables, ("roots",), _root))


def read_units(reading: Reading, tables: Mapping[str, object]) -> tuple[UnitSpec, ...]:
    """The IOMMU units, in the order of the file."""
    specs = tuple(_each(reading, tables, ("iommu", "units"), _unit))
    owner: dict[str, str] = {}
    rest = [spec.name for spec in specs if not spec.scope]
    for name in rest[1:]:
        why = f"takes all functions that are left, as {rest[0]} does (give one of them a scope)"
        reading.note(("iommu", "units", name, "scope"), why)
    for spec in specs:
        for place in spec.scope:
            if place in owner:
                why = f"{place} is behind {owner[place]}, too (leave it out of one)"
                reading.note(("iommu", "units", spec.name, "scope"), why)
            owner[place] = spec.name
    return specs


def _each(
    reading: Reading,
    tables: Mapping[str, object],
    above: Keys,
    read: Callable[[Reading, str, object, Keys], S],
) -> Iterator[S]:
    for name, content in tables.items():
        keys = (*above, name)
        if is_absent(content):
            reading.note((*keys, "absent"), NOTHING_THERE)
            continue
        spec = reading.attempt(read, reading, name, content, keys)
        if spec is not None:
            yield spec


def _root(reading: Reading, name: str, content: object, keys: Keys) -> RootSpec:
    if re.fullmatch(ROOT_NAMES, name) is None:
        reading.note(keys, 'is no root bus (give domain and bus, such as "0000:80")')
    return RootSpec(name, **fields(reading.table(content, ROOT, keys), ROOT))


def _unit(reading: Reading, name: str, content: object, keys: Keys) -> UnitSpec:
    if PATH_NAME.fullmatch(name) is None:
        reading.note(keys, f"cannot name an IOMMU unit ({values.NAME_HINT})")
    return UnitSpec(name, **fields(reading.table(content, UNIT, keys), UNIT))
