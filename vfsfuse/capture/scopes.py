# SPDX-License-Identifier: Apache-2.0
"""Which functions of a captured machine are behind which IOMMU unit, in as few names as possible.

State: none. Source: docs/lab.md, `[iommu.units]`.
"""

from collections.abc import Mapping, Sequence

from vfsfuse.capture.machine import FoundFunction

MAX_DEPTH = 256
"""Bridges below one another: a domain has no more buses."""


def scopes(
    functions: Sequence[FoundFunction], roots: Mapping[str, int | None]
) -> Mapping[str, Sequence[str]]:
    """By the name of an IOMMU unit, the root buses, bridges and functions that it is above."""
    found: dict[str, list[str]] = {}
    below: dict[str, list[FoundFunction]] = {}
    for each in functions:
        if each.physical is None:
            below.setdefault(each.above or each.bus, []).append(each)
    units: dict[str, set[str | None]] = {}

    def gather(name: str, depth: int = 0) -> set[str | None]:
        if name not in units and depth < MAX_DEPTH:
            units[name] = set()
            for each in below.get(name, ()):
                units[name] |= {each.unit} | (gather(each.address, depth + 1) if each.is_bridge else set())
        return units.get(name, set())

    def place(name: str, own: set[str | None]) -> None:
        whole = own | gather(name)
        unit = next(iter(whole)) if len(whole) == 1 else None
        if unit is not None:
            found.setdefault(unit, []).append(name)
            return
        if len(own) == 1 and (unit := next(iter(own))) is not None and not below.get(name):
            found.setdefault(unit, []).append(name)
        for each in below.get(name, ()):
            place(each.address, {each.unit})

    for bus in roots:
        place(bus, set())
    return {name: found[name] for name in sorted(found)}
