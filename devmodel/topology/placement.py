# SPDX-License-Identifier: Apache-2.0
"""The buses of a machine: which bridge is above which bus, and what bus numbers each bridge has.

A machine has root buses, bridges that it names, and a root port for each other bus that a function is on. The
bus right below a bridge has a higher number than the bus that the bridge is on, so ascending numbers are the
order in which Linux walks down.

State: none, all are values. Source: PCI-to-PCI Bridge Architecture 1.2 chapter 3.2.5 (bus numbers), PCI
Express Base 4.0 chapter 1.3, the behaviour of pci_scan_bridge() in the kernel.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from devmodel.pci.address import PciAddress, bus_name
from devmodel.pci.bridge import BusNumbers
from devmodel.topology.grouping import DeviceAddress, Kind, device_of

DEVICES, FUNCTIONS, LAST_BUS = 32, 8, 0xFF
Bus = tuple[int, int]
"""A segment and the number of a bus in it."""


class Site(NamedTuple):
    """A physical function of a machine, to be placed. ``last`` is the address of its last virtual function,
    its own without one.

    A bridge has the number of the bus right below it in ``secondary``, and that of the last bus below it in
    ``subordinate`` (None: as far as what is below needs it).
    """

    address: PciAddress
    last: PciAddress
    kind: Kind = Kind.ENDPOINT
    secondary: int | None = None
    subordinate: int | None = None

    @property
    def bus(self) -> Bus:
        """The bus that it is on."""
        return self.address.segment, self.address.bus


class BridgePlace(NamedTuple):
    """A bridge and the buses below it. An ``automatic`` one is a root port that nobody named."""

    address: PciAddress
    kind: Kind
    buses: BusNumbers
    automatic: bool

    @property
    def bus_below(self) -> str:
        """The name of the bus right below it."""
        return bus_name(self.address.segment, self.buses.secondary)


@dataclass(frozen=True, slots=True)
class Placement:
    """A machine's ``roots`` by name, and its ``bridges`` by the name of the bus right below each. Both are in
    ascending order, so a bridge comes behind those above it."""

    roots: tuple[str, ...]
    bridges: Mapping[str, BridgePlace]
    _functions: Mapping[DeviceAddress, int]

    def above(self, address: PciAddress) -> BridgePlace | None:
        """The bridge above a physical function, None on a root bus."""
        return self.bridges.get(address.bus_name)

    def multifunction(self, address: PciAddress) -> bool:
        """Whether the device of a function has others as well. Virtual functions do not count: a card with a
        single port has the header of a single function, though it has SR-IOV."""
        return self._functions[device_of(address)] > 1


def place(sites: Sequence[Site], roots: Iterable[Bus] = ()) -> Placement:
    """Place the functions of a machine. Bus 0 of a domain is a root bus, besides those in ``roots``.

    Raises ValueError, which names the address and the remedy, for buses that cannot be.
    """
    by_segment: dict[int, list[Site]] = {}
    declared: dict[int, set[int]] = {}
    for site in sites:
        by_segment.setdefault(site.address.segment, []).append(site)
    for segment, bus in roots:
        by_segment.setdefault(segment, [])
        declared.setdefault(segment, set()).add(bus)
    found_roots: list[str] = []
    bridges: dict[str, BridgePlace] = {}
    for segment in sorted(by_segment):
        domain = _Domain(segment, by_segment[segment], declared.get(segment, set()))
        places = domain.places()
        bridges |= {place.bus_below: place for place in places}
        used = {site.address.bus for site in by_segment[segment]} | {each.buses.primary for each in places}
        shown = declared.get(segment, set()) | (domain.roots & used)
        found_roots += [bus_name(segment, bus) for bus in sorted(shown)]
    automatic = (each.address for each in bridges.values() if each.automatic)
    functions = Counter(map(device_of, (*(site.address for site in sites), *automatic)))
    return Placement(tuple(found_roots), bridges, functions)


class _Domain:
    """The buses of one domain, while they are placed."""

    def __init__(self, segment: int, sites: Sequence[Site], roots: set[int]) -> None:
        self.segment, self.sites, self.roots = segment, sites, roots | {0}
        self.named: dict[int, Site] = {}
        for site in sites:
            if site.secondary is not None:
                self._name(site, site.secondary)

    def places(self) -> list[BridgePlace]:
        """The bridges, in the order of the buses right below them. Raises ValueError."""
        needed = self._needed()
        own = {site.address.bus for site in self.sites}
        lonely = sorted(own - self.roots - self.named.keys())
        places = [
            BridgePlace(site.address, site.kind, self._numbers(site, needed), False)
            for site in self.named.values()
        ]
        for bus in lonely:
            self._check_reached(bus, places)
        places += self._ports(lonely, needed)
        places.sort(key=lambda each: each.buses.secondary)
        self._check_virtual({*self.roots, *(each.buses.secondary for each in places)})
        self._check_nesting(places)
        return places

    def root_of(self, bus: int) -> int:
        """The root bus that a bus number belongs to: the next lower one."""
        return max(root for root in self.roots if root <= bus)

    def _name(self, site: Site, below: int) -> None:
        """A bridge leads to the bus `below`."""
        if below in self.named:
            raise ValueError(
                f"bus {below:02x} is below two bridges, {self.named[below].address} and {site.address} "
                "(give one of them another secondary)"
            )
        if below in self.roots:
            raise ValueError(
                f"bus {below:02x} is a root bus, not one below {site.address} (give the bridge another "
                "secondary, or leave the root bus out)"
            )
        if below <= site.address.bus:
            raise ValueError(
                f"{site.address} is on bus {site.address.bus:02x}, so bus {below:02x} cannot be below it "
                f"(give it a secondary of {site.address.bus + 1:#04x} or more)"
            )
        if site.subordinate is not None and site.subordinate < below:
            raise ValueError(
                f"the last bus below {site.address}, {site.subordinate:02x}, comes before its first, "
                f"{below:02x} (give it a higher subordinate, or none)"
            )
        self.named[below] = site

    def _needed(self) -> Mapping[int, int]:
        """The last bus that each bus has to lead to, for what is on it and below it."""
        needed: dict[int, int] = defaultdict(int)
        sites: dict[int, list[Site]] = {}
        for site in self.sites:
            sites.setdefault(site.address.bus, []).append(site)
        for bus in sorted({*sites, *self.named}, reverse=True):
            ends = [bus]
            for site in sites.get(bus, ()):
                ends.append(site.last.bus)
                if site.secondary is not None:
                    ends.append(max(needed[site.secondary], site.subordinate or 0))
            needed[bus] = max(ends)
        return needed

    def _numbers(self, site: Site, needed: Mapping[int, int]) -> BusNumbers:
        assert site.secondary is not None
        last = needed[site.secondary]
        if site.subordinate is not None and site.subordinate < last:
            raise ValueError(
                f"bus {last:02x} is below {site.address}, whose last bus is {site.subordinate:02x} "
                f"(give it a subordinate of {last:#04x} or more, or none)"
            )
        return BusNumbers(site.address.bus, site.secondary, site.subordinate or last)

    def _ports(self, buses: Sequence[int], needed: Mapping[int, int]) -> Iterator[BridgePlace]:
        """Root ports above these buses, each on the root bus that the bus belongs to."""
        taken = set(_taken(self.sites))
        free = {root: _free(self.segment, root, taken) for root in map(self.root_of, buses)}
        numbered: dict[int, list[PciAddress]] = {}
        for bus in buses:
            root = self.root_of(bus)
            port = next(free[root], None)
            if port is None:
                raise ValueError(
                    f"no room on bus {bus_name(self.segment, root)} for a root port above bus {bus:02x}"
                )
            numbered.setdefault(root, []).append(port)
        for bus in buses:
            root = self.root_of(bus)
            buses_below = BusNumbers(root, bus, needed[bus])
            yield BridgePlace(numbered[root].pop(0), Kind.ROOT_PORT, buses_below, True)

    def _check_reached(self, bus: int, places: Sequence[BridgePlace]) -> None:
        """Raise ValueError if a bus that no bridge is right above lies among those below a bridge."""
        for place in places:
            _, first, last = place.buses
            if first < bus <= last:
                function = min(site.address for site in self.sites if site.address.bus == bus)
                raise ValueError(
                    f"nothing reaches {function}: its bus is one of those below {place.address} "
                    f"({first:02x} to {last:02x}), but right below no bridge (put a bridge with secondary = "
                    f"{bus:#04x} on a bus below {place.address}, or give the function another address)"
                )

    def _check_nesting(self, places: Sequence[BridgePlace]) -> None:
        """Raise ValueError if the buses below two bridges overlap, or leave those of the bridge above."""
        last: dict[int, BridgePlace] = {}
        below = {place.buses.secondary: place for place in places}
        roots = sorted(self.roots)
        for place in places:
            primary, first, end = place.buses
            before = last.get(primary)
            if before is not None and before.buses.subordinate >= first:
                raise ValueError(
                    f"the buses below {before.address} ({_span(before)}) and {place.address} "
                    f"({_span(place)}) overlap (change secondary or subordinate of one of them)"
                )
            last[primary] = place
            above = below.get(primary)
            if above is None:
                limit = next((root for root in roots if root > primary), LAST_BUS + 1)
                if end >= limit:
                    raise ValueError(
                        f"the buses below {place.address} ({_span(place)}) reach root bus {limit:02x} "
                        "(give the bridge buses with lower numbers, or the root bus a higher one)"
                    )
            elif end > above.buses.subordinate:  # for ports that nobody named there is no such bridge
                raise ValueError(
                    f"the buses below {place.address} ({_span(place)}) are not all among those below "
                    f"{above.address} ({_span(above)}) (give that one a higher subordinate)"
                )

    def _check_virtual(self, reached: set[int]) -> None:
        """Raise ValueError if virtual functions are on a bus that is below another bridge."""
        for site in self.sites:
            for bus in range(site.address.bus + 1, site.last.bus + 1):
                if bus in reached:
                    raise ValueError(
                        f"no room for the virtual functions of {site.address}: bus {bus:02x} is below "
                        "another bridge (give that bus a higher number)"
                    )


def _span(place: BridgePlace) -> str:
    return f"{place.buses.secondary:02x} to {place.buses.subordinate:02x}"


def _taken(sites: Iterable[Site]) -> Iterator[PciAddress]:
    """The addresses of functions, and those from a function to its last virtual one."""
    for site in sites:
        if site.last == site.address:
            yield site.address
        else:
            distance = site.last.rid - site.address.rid
            yield from (site.address.after(index) for index in range(distance + 1))


def _free(segment: int, bus: int, taken: set[PciAddress]) -> Iterator[PciAddress]:
    """The addresses for ports on a root bus: first function 0 of each device. Device 0 is the host
    bridge's."""
    for function in range(FUNCTIONS):
        for device in range(1, DEVICES):
            address = PciAddress(segment, bus, device << 3 | function)
            if address not in taken:
                yield address
