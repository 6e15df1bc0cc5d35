# SPDX-License-Identifier: Apache-2.0
"""The PCI functions of a lab file: how they are found at first, taken away, and found again by a rescan.

A function that is found again is a new one: its model is as firmware leaves it. Its address and those of its
BARs are the old ones, its IOMMU group has the lowest number that is free.

State: the lifecycle thread's, under ``Lab.lock``. Source: Documentation/ABI/testing/sysfs-bus-pci (remove and
rescan), the order in which drivers/pci/remove.c and drivers/pci/probe.c of the kernel do things.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain

from devmodel.calls.point import CallPoint
from devmodel.device.bridge import Below
from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.binding import DriverCore, depending_on, held_by
from devmodel.lifecycle.bridge import (
    Bridge,
    Places,
    automatic_ports,
    numa_nodes,
    place_functions,
)
from devmodel.lifecycle.change import lifecycle_change
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.functiontable import FunctionTable
from devmodel.lifecycle.iommugroup import Place, bridge_nodes, node_of
from devmodel.lifecycle.mdev import Parent
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.slots import Slots, absent_at_first, slot_ports
from devmodel.lifecycle.spec import FunctionSpec, LabSpec, SpecError
from devmodel.pci.address import PciAddress, bus_name
from devmodel.pci.config import Aperture, Assigned, NoRoom
from devmodel.topology.grouping import found_order
from devmodel.topology.placement import Placement
from devmodel.vfio.group import Assignable, Group, retire_all

PCI = "pci"
"""The name of the bus type."""
CLASS_DISPLAY_VGA = 0x0300
_NO_GROUP = Group(-1)
"""Of functions that are not there."""


class Hotplug:
    """Makes and removes the physical functions and bridges of a lab.

    ``parents`` and ``ports`` have what is there now: parents by name, bridges by the name of the bus right
    below each, those above before those below. Parents that are no PCI functions always are. ``slots`` are
    those of its ports: no scan finds a card in one without power.
    """

    def __init__(
        self,
        lock: threading.RLock,
        drivers: DriverCore,
        table: FunctionTable,
        host: TaskHost,
    ) -> None:
        self._lock, self._drivers, self._table, self._host = lock, drivers, table, host
        self._functions: dict[str, FunctionSpec] = {}
        self.assigned: dict[str, Assigned] = {}
        """The addresses of the BARs of each function, whether it is there now or not."""
        self._on_bus: dict[str, list[str]] = {}
        self._places = Places({}, Placement((), {}, {}))
        self._nodes: Mapping[str, int] = {}
        self._below: dict[str, Below] = {}
        self._displays: list[str] = []
        """The VGA displays of the lab, in the order of their addresses."""
        self.parents: dict[str, Parent] = {}
        self.ports: dict[str, Bridge] = {}
        self.slots = Slots()

    @property
    def calls(self) -> CallPoint:
        return self._drivers.calls

    @property
    def buses(self) -> Placement:
        """The buses and bridges of the lab, whether they are there now or not."""
        return self._places.buses

    @property
    def specs(self) -> Mapping[str, FunctionSpec]:
        """All functions of the lab by name, whether they are there now or not."""
        return self._functions

    @property
    def offsets(self) -> Mapping[str, int]:
        """How many routing ids behind a physical function its virtual ones begin, by name."""
        return self._places.offsets

    def boot(self, lab: LabSpec) -> None:
        """Make everything that a lab file describes, as firmware and kernel leave it: functions are bound to
        their host drivers. The observer is not told. Raises ValueError for what cannot be made, and
        :class:`SpecError` when BARs have no room."""
        named = lab.all_functions
        self._places = place_functions(named, lab.roots)
        specs = (*named, *automatic_ports(named, self.buses))
        self._functions = {spec.name: spec for spec in specs}
        self._source = lab.source
        self.slots.boot(specs, slot_ports(self.buses))
        absent = absent_at_first(specs)
        self._nodes = numa_nodes(specs, self.buses, lab.roots)
        for address, name in sorted((PciAddress.parse(name), name) for name in self._functions):
            self._on_bus.setdefault(address.bus_name, []).append(name)
        self._displays = [
            name for names in self._by_bus() for name in names if _is_display(self._functions[name])
        ]
        of_vgpus = {vgpu.group for vgpu in lab.vgpus if vgpu.group is not None}
        self._power_on(self._form_groups([spec for spec in specs if spec.name not in absent], of_vgpus))
        for name in absent:
            self._drop(self._drivers.functions[name])
        for spec in lab.parents:
            function = self._drivers.functions.get(spec.bdf or "")
            if isinstance(function, PhysicalFunction) and function.parent is not None:
                self.parents[spec.name] = function.parent
            elif spec.bdf is None:
                self.parents[spec.name] = Parent(spec, self._host)
        for function in self._drivers.functions.values():
            self._drivers.boot(function)

    @property
    def boot_display(self) -> PciFunction | None:
        """The display that the machine has booted with: that with the lowest address which is there. Any
        thread."""
        found = map(self._drivers.functions.get, self._displays)
        return next(filter(None, found), None)

    def going(self, function: PciFunction, last_first: bool = True) -> list[PciFunction]:
        """What goes when the function is removed: the functions below a bridge, each after what is below it,
        and the function itself. Drivers leave the last functions of a bus first, the functions themselves
        go in the order of their addresses."""
        if not isinstance(function, Bridge):
            return [function]
        names = self._on_bus.get(function.bus_below, [])
        found = map(self._drivers.functions.get, reversed(names) if last_first else names)
        below = (self.going(each, last_first) for each in found if each is not None)
        return [*chain.from_iterable(below), function]

    def held(self, function: PciFunction) -> list[Assignable]:
        """What clients may hold and what goes with the function. Under ``Lab.lock``."""
        return [device for each in self.going(function) for device in (each, *held_by(each))]

    @lifecycle_change
    def remove(self, function: PciFunction) -> None:
        """Remove a function: its driver leaves, and it is gone from everywhere. Nothing happens if it is gone
        already. Raises :class:`InUse` while a client holds one of :meth:`held`."""
        with self._lock:
            if self._drivers.functions.get(function.name) is function:
                self.remove_all((function,))

    @lifecycle_change
    def surprise_remove(self, function: PciFunction) -> None:
        """Remove a function at once, although clients may hold one of :meth:`held`, as when its link is cut.
        A rescan finds it again. Nothing happens if it is gone already."""
        with self._lock:
            if self._drivers.functions.get(function.name) is function:
                self.vanish_all((function,))

    def remove_all(self, functions: Sequence[PciFunction]) -> None:
        """Remove functions that are there, one after the other with what is below it, or none: raises
        :class:`InUse` while a client holds one of :meth:`held`. Under ``Lab.lock``."""
        retire_all([device for each in functions for gone in self.going(each) for device in held_by(gone)])
        for function in functions:
            self._take_away(function)

    def vanish_all(self, functions: Sequence[PciFunction]) -> None:
        """Remove functions by surprise, although clients may hold one of :meth:`held`. Under ``Lab.lock``."""
        for function in functions:
            for gone in self.going(function):
                for device in depending_on(gone):
                    device.vanish()
        for function in functions:
            self._take_away(function)

    def _take_away(self, function: PciFunction) -> None:
        """All drivers leave first. No client holds what goes, or it has vanished."""
        for each in self.going(function):
            self._drivers.release(each)
        for each in self.going(function, last_first=False):
            self._table.remove(each, self._leave)

    @lifecycle_change
    def rescan(self, bus: str) -> None:
        """Find the functions that are absent: on the bus of this name and below it, or with :data:`PCI` on
        all buses. They are probed when all of them are there."""
        found: list[PciFunction] = []
        with self._lock:
            try:
                for root in self.buses.roots if bus == PCI else [bus]:
                    for function in self._scan(root):
                        found.append(function)
            finally:  # also if the observer cannot show another one
                for function in found:
                    self._drivers.appeared(function)

    def close(self) -> None:
        """Close the model of each function, held or not. For the end of the process."""
        for function in self._drivers.functions.values():
            function.close()

    def _scan(self, bus: str) -> Iterator[PciFunction]:
        """Make the absent functions of a bus, and then those below each of its bridges. Nothing is found on a
        bus below an absent bridge."""
        present = self._drivers.functions
        there = (bus not in self.buses.bridges or bus in self.ports) and not self.slots.hides(bus)
        names = self._on_bus.get(bus, ()) if there else ()
        for name in names:
            if name not in present:
                spec = self._functions[name]
                with self._table.making(self._place(spec)) as group:
                    function = self._make(spec, group)
                if isinstance(function, PhysicalFunction) and function.parent is not None:
                    self.parents[name] = function.parent
                self._table.show(function, self._leave)
                yield function
        for name in names:
            bridge = present.get(name)
            if isinstance(bridge, Bridge):
                yield from self._scan(bridge.bus_below)

    def _leave(self, function: PciFunction) -> None:
        self.parents.pop(function.name, None)
        if isinstance(function, Bridge):
            self.ports.pop(function.bus_below, None)

    def _form_groups(self, specs: Sequence[FunctionSpec], of_vgpus: Set[int]) -> Mapping[str, Group]:
        """The groups of the functions that are there from the start, by name. They are numbered in this
        order: those of parents as the lab file has them, of other functions as Linux finds them, and of root
        ports that the file does not name. ``of_vgpus`` are numbers that vGPUs have."""
        self._table.bridges.update(bridge_nodes(self._functions, self.buses))
        ports = {str(bridge.address) for bridge in self.buses.bridges.values() if bridge.automatic}
        parents, named, automatic = list[Place](), list[Place](), list[Place]()
        for spec in specs:
            kind = automatic if spec.name in ports else named if spec.parent is None else parents
            kind.append(self._place(spec))
        behind = {place.node: place for place in named}
        ordered = [*parents, *map(behind.__getitem__, found_order(behind)), *automatic]
        fixed = {each.group for each in self._functions.values() if isinstance(each.group, int)}
        shared = (each.vf.groups for each in self._functions.values() if each.vf is not None)
        fixed.update(number for numbers in shared for number in numbers)
        fixed.update(of_vgpus)
        found = self._table.boot(ordered, fixed)
        return {str(address): group for address, group in found.items()}

    def _place(self, spec: FunctionSpec) -> Place:
        return Place(node_of(spec, self.buses, self._table.bridges), spec.iommu)

    def _power_on(self, groups: Mapping[str, Group]) -> None:
        """Make all functions. BARs are placed bus by bus, so that those below a bridge are next to each
        other. Then the bridges are made, those that are below others first: their windows cover what is
        below."""
        aperture = Aperture()
        for names in self._by_bus():
            aperture.fence()
            for name in names:
                spec = self._functions[name]
                self.assigned[name] = Assigned(aperture)
                if spec.bridge is None:
                    self._make_first(spec, groups.get(name) or _NO_GROUP)
        for bus, place in reversed(tuple(self.buses.bridges.items())):
            below = [self._drivers.functions[name] for name in self._on_bus.get(bus, ())]
            rows = (row for function in below for row in function.rows())
            links = (function.link for function in below)
            self._below[bus] = Below.around(place.buses, rows, links)
            name = str(place.address)
            self._make_first(self._functions[name], groups.get(name) or _NO_GROUP)
        bridges = tuple(self.ports.items())
        self.ports.clear()
        self.ports.update(reversed(bridges))
        for function in self._drivers.functions.values():
            function.upstream = self.ports.get(function.address.bus_name)
            if isinstance(function, Bridge):
                function.bus.sort(key=lambda each: each.address)

    def _drop(self, function: PciFunction) -> None:
        """Take away a function that was made only to have room."""
        function.close()
        function.bus.remove(function)
        del self._drivers.functions[function.name]
        self._leave(function)

    def _by_bus(self) -> Iterator[list[str]]:
        """The names of functions, bus by bus in ascending order."""
        order = sorted(self._on_bus.items(), key=lambda each: PciAddress.parse(each[1][0]))
        return (names for _, names in order)

    def _make_first(self, spec: FunctionSpec, group: Group) -> None:
        """Make a function for the first time. Raises :class:`SpecError` when its BARs have no room."""
        try:
            self._make(spec, group)
        except NoRoom as error:
            table = "functions" if spec.parent is None else "parents"
            raise SpecError(f'{self._source}: {table}."{spec.name}": {error} ({error.remedy})') from error

    def _make(self, spec: FunctionSpec, group: Group) -> PciFunction:
        """Make a function, which is on its bus then."""
        address = PciAddress.parse(spec.name)
        bus, aperture = self._drivers.bus(address), self.assigned[spec.name].again()
        function: PciFunction
        if spec.bridge is None:
            offsets = self._places.offsets
            function = PhysicalFunction(spec, group, aperture, bus, self._host, offsets, self.buses)
        else:
            function = self._make_bridge(spec, group, aperture)
        function.core.numa_node = self._nodes[spec.name]
        function.upstream = self.ports.get(address.bus_name)
        self._table.enter(function)
        return function

    def _make_bridge(self, spec: FunctionSpec, group: Group, aperture: Aperture) -> Bridge:
        assert spec.bridge is not None
        address = PciAddress.parse(spec.name)
        bus = bus_name(address.segment, spec.bridge.secondary)
        place, below = self.buses.bridges[bus], self._below[bus]
        beside = self._drivers.bus(address)
        bus_below = self._drivers.bus(address._replace(bus=place.buses.secondary))
        multifunction = self.buses.multifunction(address)
        slot = self.slots.by_bus.get(bus)
        bridge = Bridge(spec, place, group, below, aperture, beside, bus_below, multifunction, slot)
        self.ports[bus] = bridge
        return bridge


def _is_display(spec: FunctionSpec) -> bool:
    return spec.model is not None and spec.model.identity.class_code >> 8 == CLASS_DISPLAY_VGA
