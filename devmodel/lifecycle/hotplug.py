# SPDX-License-Identifier: Apache-2.0
"""The PCI functions of a lab file: how they are found at first, taken away, and found again by a rescan.

A function that is found again is a new one: its model is as firmware leaves it. Its address and those of its
BARs are the old ones, its IOMMU group has the lowest number that is free.

State: the lifecycle thread's, under ``Lab.lock``. Source: Documentation/ABI/testing/sysfs-bus-pci (remove and
rescan), the order in which drivers/pci/remove.c and drivers/pci/probe.c of the kernel do things.
"""

import threading
from collections.abc import Iterator, Mapping
from itertools import groupby

from devmodel.callpoint import CallPoint, lifecycle_change
from devmodel.device.bridge import Below
from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.binding import DriverCore, held_by
from devmodel.lifecycle.function import PciFunction, PhysicalFunction
from devmodel.lifecycle.functions import FunctionTable
from devmodel.lifecycle.mdev import Parent
from devmodel.lifecycle.pcicore import NO_NODE
from devmodel.lifecycle.rootport import PortPlace, RootPort, place_ports
from devmodel.lifecycle.spec import FunctionSpec, LabSpec
from devmodel.lifecycle.vf import place_vfs
from devmodel.pci.address import PciAddress
from devmodel.pci.config import Aperture, Assigned
from devmodel.vfio.group import Assignable, Group, retire_all

PCI = "pci"
"""The name of the bus type."""


class Hotplug:
    """Makes and removes the physical functions and root ports of a lab.

    ``parents`` and ``ports`` have what is there now: parents by name, root ports by the name of the bus right
    below each. Parents that are no PCI functions always are.
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
        self._places: Mapping[str, PortPlace] = {}
        self._offsets: Mapping[str, int] = {}
        self._assigned: dict[str, Assigned] = {}
        self._below: dict[str, Below] = {}
        self.parents: dict[str, Parent] = {}
        self.ports: dict[str, RootPort] = {}

    @property
    def calls(self) -> CallPoint:
        return self._drivers.calls

    def boot(self, lab: LabSpec) -> None:
        """Make everything that a lab file describes, as firmware and kernel leave it: functions are bound to
        their host drivers. The observer is not told. Raises ValueError for what cannot be made."""
        specs = lab.all_functions
        self._functions = {spec.name: spec for spec in specs}
        self._offsets = place_vfs(specs)
        self._places = place_ports(specs, self._offsets)
        groups = {name: self._table.new_group(not spec.iommu) for name, spec in self._functions.items()}
        made: dict[str, Parent] = {
            spec.name: Parent(spec, self._host) for spec in lab.parents if not spec.bdf
        }
        aperture = Aperture()
        for bus, names in groupby(sorted(self._functions, key=_bus_of), _bus_of):
            aperture.fence()
            below = []
            for name in names:
                self._assigned[name] = Assigned(aperture)
                below.append(self._make_function(self._functions[name], groups[name]))
            made.update({each.name: each.parent for each in below if each.parent is not None})
            if bus in self._places:
                devices = [function.device for function in below]
                self._below[bus] = Below.around(self._places[bus].buses, devices)
        self.parents.update({spec.name: made[spec.name] for spec in lab.parents})
        for bus in self._places:
            self._make_port(bus)
        for function in self._drivers.functions.values():
            function.driver = function.host_driver

    def going(self, function: PciFunction) -> list[PciFunction]:
        """What goes when the function is removed, in that order: the functions below a root port, the last
        first, and the function itself."""
        if not isinstance(function, RootPort):
            return [function]
        names = (name for name in self._functions if self._drivers.functions.get(name) is not None)
        found = (self._drivers.functions[name] for name in sorted(names, reverse=True))
        return [*(each for each in found if each.upstream is function), function]

    def held(self, function: PciFunction) -> list[Assignable]:
        """What clients may hold and what goes with the function. Under ``Lab.lock``."""
        return [device for each in self.going(function) for device in (each, *held_by(each))]

    @lifecycle_change
    def remove(self, function: PciFunction) -> None:
        """Remove a function: its driver leaves, and it is gone from everywhere. Nothing happens if it is gone
        already. Raises :class:`InUse` while a client holds one of :meth:`held`."""
        with self._lock:
            if self._drivers.functions.get(function.name) is not function:
                return
            going = self.going(function)
            retire_all([device for each in going for device in held_by(each)])
            for each in going:
                self._drivers.release(each)
            for each in going:
                self._table.remove(each, self._leave)

    @lifecycle_change
    def rescan(self, bus: str) -> None:
        """Find the functions that are absent: on the bus of this name and below it, or with :data:`PCI` on
        all buses. They are probed when all of them are there."""
        found: list[PciFunction] = []
        with self._lock:
            try:
                for function in self._scan(None if bus == PCI else bus):
                    found.append(function)
            finally:  # also if the observer cannot show another one
                for function in found:
                    self._drivers.appeared(function)

    def close(self) -> None:
        """Close the model of each function, held or not. For the end of the process."""
        for function in self._drivers.functions.values():
            function.device.close()

    def _scan(self, bus: str | None) -> Iterator[PciFunction]:
        """Functions on bus 0 come first, as they are found first. Those below an absent port cannot be
        found."""
        for below, place in self._places.items():
            if below not in self.ports and bus in (None, place.address.bus_name):
                yield self._found(self._make_port(below))
        for name in sorted(self._functions):
            if name not in self._drivers.functions and self._reached(name, bus):
                spec = self._functions[name]
                with self._table.making(noiommu=not spec.iommu) as group:
                    function = self._make_function(spec, group)
                yield self._found(function)

    def _reached(self, name: str, bus: str | None) -> bool:
        """Whether a scan that begins on ``bus`` finds the function of this name."""
        own = _bus_of(name)
        port = self.ports.get(own)
        if own in self._places and port is None:
            return False
        return bus in (None, own) or (port is not None and bus == port.address.bus_name)

    def _found(self, function: PciFunction) -> PciFunction:
        if isinstance(function, PhysicalFunction) and function.parent is not None:
            self.parents[function.name] = function.parent
        self._table.show(function, self._leave)
        return function

    def _leave(self, function: PciFunction) -> None:
        self.parents.pop(function.name, None)
        for bus in [bus for bus, port in self.ports.items() if port is function]:
            del self.ports[bus]

    def _make_function(self, spec: FunctionSpec, group: Group) -> PhysicalFunction:
        bus = self._drivers.bus(PciAddress.parse(spec.name))
        aperture = self._assigned[spec.name].again()
        function = PhysicalFunction(spec, group, aperture, bus, self._host, self._offsets)
        function.upstream = self.ports.get(function.address.bus_name)
        self._drivers.functions[function.name] = function
        return function

    def _make_port(self, bus: str) -> RootPort:
        """A port is behind the IOMMU when a function below it is."""
        specs = [spec for name, spec in self._functions.items() if _bus_of(name) == bus]
        group = self._table.new_group(noiommu=not any(spec.iommu for spec in specs))
        functions = self._drivers.functions
        node = NO_NODE if specs[0].numa_node is None else specs[0].numa_node
        port = RootPort(self._places[bus], group, self._below[bus], node, functions)
        self.ports[bus] = functions[port.name] = port
        for spec in specs:
            below = functions.get(spec.name)
            if below is not None:
                below.upstream = port
        return port


def _bus_of(name: str) -> str:
    return PciAddress.parse(name).bus_name
