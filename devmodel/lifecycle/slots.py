# SPDX-License-Identifier: Apache-2.0
"""The physical slots of a lab: which ports have one, which cards are in them, and whether they have power.

A slot is that of the port above its card, and has the card's bus. It is named in the lab file by the port, or
by the functions of the card. All functions on the bus are one card, with everything below them. A device that
is right below no such port, as on a root bus, is in a fixed slot, from which nothing is taken.

State: the lifecycle thread's, under ``Lab.lock``; any thread may read it. Source: PCI Express Base 4.0
chapter 6.7, the names that the kernel's pciehp gives to slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.spec import FunctionSpec
from devmodel.pci.address import PciAddress
from devmodel.pci.slot import Indicator, show_slot
from devmodel.topology.placement import Placement


class Slot:
    """The slot of the port above ``bus``, with physical number ``number``. ``has_card`` is whether the lab
    has a card for it, ``attention`` what its attention indicator does."""

    __slots__ = ("attention", "bus", "has_card", "name", "number", "occupied", "powered")

    def __init__(self, name: str, number: int, bus: str, has_card: bool, occupied: bool) -> None:
        self.name, self.number, self.bus, self.has_card = name, number, bus, has_card
        self.occupied = self.powered = occupied
        self.attention = Indicator.OFF

    @property
    def address(self) -> str:
        """Where the card is: its bus and its device number, which is always 0."""
        return f"{self.bus}:00"

    @property
    def is_on(self) -> bool:
        """Whether there is a card with power, so that the kernel finds it."""
        return self.occupied and self.powered

    def shown_by(self, port: PciDevice) -> None:
        """Have the registers of the port say how the slot is."""
        with port.lock:
            show_slot(port.config, self.occupied, self.powered, self.attention)


class FixedSlot(NamedTuple):
    """A slot without hot-plug, with the device at ``address``: its bus and its device number."""

    name: str
    address: str


class Slots:
    """The slots of a lab: those of ports by the name of the bus of each, and the fixed ones."""

    def __init__(self) -> None:
        self.by_bus: dict[str, Slot] = {}
        self.fixed: list[FixedSlot] = []

    def boot(self, functions: Sequence[FunctionSpec], ports: Mapping[str, str]) -> None:
        """Find the slots. ``ports`` has the address of the port above each bus. Raises ValueError for what
        :func:`slot_problems` finds."""
        if not _mention_slots(functions):
            return
        for address, why in slot_problems(functions, ports):
            raise ValueError(f"{address}: {why}")
        numbers = {bus: int(spec.slot or 0) for bus, spec in _named(functions, ports).items()}
        absent = {_bus_of(spec) for spec in functions if not spec.plugged}
        cards = {_bus_of(spec) for spec in functions}
        names: set[str] = set()
        for bus in sorted(numbers):
            name = _new_name(numbers[bus], names)
            self.by_bus[bus] = Slot(name, numbers[bus], bus, bus in cards, bus in cards - absent)
        for address, spec in sorted(_fixed(functions, ports).items()):
            self.fixed.append(FixedSlot(_new_name(int(spec.slot or 0), names), address))

    def hides(self, bus: str) -> bool:
        """Whether the kernel finds nothing right below the port above a bus: its slot has no card, or no
        power."""
        slot = self.by_bus.get(bus)
        return slot is not None and not slot.is_on


def slot_ports(buses: Placement) -> Mapping[str, str]:
    """The ports that can have a slot: by the name of the bus right below each, its address."""
    return {bus: str(place.address) for bus, place in buses.bridges.items() if place.kind.is_downstream_port}


def slot_problems(functions: Sequence[FunctionSpec], ports: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with ``slot`` and ``plugged`` of functions: the address of each, and why."""
    if not _mention_slots(functions):
        return
    named, fixed = _named(functions, ports), _fixed(functions, ports)
    for spec in functions:
        first = named.get(_slot_bus(spec)) or fixed.get(_device_of(spec))
        if spec.slot is not None and first is not None and first.slot != spec.slot:
            yield spec.address, f"{first.address} says that this is slot {first.slot} (give the same number)"
        if not spec.plugged and _bus_of(spec) not in ports:
            yield spec.address, "no port above it has a slot, so it is always there (leave plugged out)"
        elif not spec.plugged and _bus_of(spec) not in named:
            yield spec.address, "a function that is not plugged in needs a slot (give it one)"
    for bus, cards in _cards(functions).items():
        for spec in cards:
            if spec.plugged != cards[0].plugged and bus in named:
                yield spec.address, f"is on the same card as {cards[0].address} (plug both, or none)"


def absent_at_first(functions: Sequence[FunctionSpec]) -> set[str]:
    """The names of the functions that are not there at the start: those of cards that are not plugged in, and
    those below them."""
    if all(spec.plugged for spec in functions):
        return set()
    buses: set[tuple[int, int]] = set()
    found: set[str] = set()
    for spec in sorted(functions, key=lambda each: PciAddress.parse(each.address)):
        address = PciAddress.parse(spec.address)
        if not spec.plugged or (address.segment, address.bus) in buses:
            found.add(spec.name)
            if spec.bridge is not None:
                buses.add((address.segment, spec.bridge.secondary))
    return found


def _mention_slots(functions: Sequence[FunctionSpec]) -> bool:
    """Whether a function has a slot, or is not plugged in. A lab of 10,000 functions often has none."""
    return any(spec.slot is not None or not spec.plugged for spec in functions)


def _named(functions: Sequence[FunctionSpec], ports: Mapping[str, str]) -> dict[str, FunctionSpec]:
    """By bus, the first function that names the slot of the port above."""
    found: dict[str, FunctionSpec] = {}
    for spec in functions:
        bus = _slot_bus(spec)
        if spec.slot is not None and (_has_slot(spec) or bus in ports):
            found.setdefault(bus, spec)
    return found


def _fixed(functions: Sequence[FunctionSpec], ports: Mapping[str, str]) -> dict[str, FunctionSpec]:
    """By the address of the device, the first function that names a fixed slot."""
    found: dict[str, FunctionSpec] = {}
    for spec in functions:
        if spec.slot is not None and not _has_slot(spec) and _bus_of(spec) not in ports:
            found.setdefault(_device_of(spec), spec)
    return found


def _cards(functions: Sequence[FunctionSpec]) -> dict[str, list[FunctionSpec]]:
    found: dict[str, list[FunctionSpec]] = {}
    for spec in functions:
        found.setdefault(_bus_of(spec), []).append(spec)
    return found


def _has_slot(spec: FunctionSpec) -> bool:
    """Whether the function is a port that can have a slot below it; any other is in a slot."""
    return spec.bridge is not None and spec.bridge.kind.is_downstream_port


def _slot_bus(spec: FunctionSpec) -> str:
    """The bus of the slot that the function has or is in."""
    if _has_slot(spec) and spec.bridge is not None:
        return PciAddress(PciAddress.parse(spec.address).segment, spec.bridge.secondary, 0).bus_name
    return _bus_of(spec)


def _device_of(spec: FunctionSpec) -> str:
    """The address of its device: without the function number."""
    return spec.address.partition(".")[0]


def _bus_of(spec: FunctionSpec) -> str:
    return PciAddress.parse(spec.address).bus_name


def _new_name(number: int, taken: set[str]) -> str:
    name = next(each for each in _names(number) if each not in taken)
    taken.add(name)
    return name


def _names(number: int) -> Iterator[str]:
    """The names for a slot with this number: pciehp numbers those through that would be the same."""
    yield str(number)
    for again in range(1, 1 << 16):
        yield f"{number}-{again}"
