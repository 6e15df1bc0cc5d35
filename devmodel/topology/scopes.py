# SPDX-License-Identifier: Apache-2.0
"""Which IOMMU unit a function is behind: the scope of a unit has root buses, bridges with all that is below
them, and functions.

State: none that changes. Source: Intel Virtualization Technology for Directed I/O 4.1 chapter 8.3 (device
scopes of remapping hardware units).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from devmodel.pci.address import PciAddress
from devmodel.topology.placement import Placement


class Scopes:
    """The scopes of units by name. The unit without one takes what no other has."""

    __slots__ = ("_buses", "_rest", "_units")

    def __init__(self, scopes: Mapping[str, Sequence[str]], buses: Placement) -> None:
        self._buses = buses
        self._units = {place: name for name, places in scopes.items() for place in places}
        self._rest = next((name for name, places in scopes.items() if not places), None)

    def unit_of(self, address: PciAddress) -> str | None:
        """The unit that a physical function is behind: that which names the function, else the nearest bridge
        above, else the root bus. None when no unit has it."""
        found = self._units.get(str(address))
        while found is None:
            bridge = self._buses.above(address)
            if bridge is None:
                return self._units.get(address.bus_name, self._rest)
            address = bridge.address
            found = self._units.get(str(address))
        return found

    def unknown(self, functions: Sequence[PciAddress]) -> Mapping[str, Sequence[str]]:
        """What the scope of each unit names that is not there."""
        there = {*self._buses.roots, *map(str, functions)}
        there |= {str(bridge.address) for bridge in self._buses.bridges.values()}
        found: dict[str, list[str]] = {}
        for place, name in self._units.items():
            if place not in there:
                found.setdefault(name, []).append(place)
        return found
