# SPDX-License-Identifier: Apache-2.0
"""PCI buses and host bridges in the tree. Trio thread.

A bus appears with the first function on it, and goes with the last one. A bus right below a bridge is always
there; one that has only virtual functions is there while they are.
"""

from __future__ import annotations

from contextlib import ExitStack

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.pcicore import NO_NODE
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.bridge import BridgeDir, HostBridgeDir, PciBusNodeDir
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.uevent import emit
from vfsfuse.views.additions import Additions


class BusViews:
    """The host bridges of a lab, and the directories of its buses."""

    def __init__(self, view: View, tree: Tree) -> None:
        self._view, self._tree = view, tree
        self._class = view.subsystems.classes["pci_bus"] = tree.make("sys/class/pci_bus")
        self._hosts: dict[str, HostBridgeDir] = {}
        self._shown: dict[str, ExitStack] = {}
        self._functions: dict[str, set[str]] = {}
        self._numa_nodes = {root.bus: root.numa_node for root in view.lab.spec.roots}

    def host(self, bus: str) -> HostBridgeDir:
        """The host bridge above a root bus, which is made with the bus on first use."""
        if bus not in self._hosts:
            directory = HostBridgeDir(f"pci{bus}", self._numa_nodes.get(bus, NO_NODE))
            self._hosts[bus] = self._tree.add(self._tree.make("sys/devices"), directory)
            self.show(bus, directory)
        return self._hosts[bus]

    def show(self, name: str, bridge: BridgeDir | HostBridgeDir) -> PciBusNodeDir:
        """Show the bus called `name` below a bridge."""
        with ExitStack() as undo:
            added = Additions(self._tree, undo)
            above = bridge.child("pci_bus")
            if not isinstance(above, Kobject):
                above = self._tree.add(bridge, Kobject("pci_bus"))
            node = added.add(above, PciBusNodeDir(name, self._view, bridge))
            added.add(self._class, Symlink(name, node))
            self._shown[name] = undo.pop_all()
        return node

    def hide(self, name: str) -> None:
        """The opposite of `show`."""
        self._shown.pop(name).close()

    def node(self, name: str) -> PciBusNodeDir | None:
        """The directory of a bus that is shown."""
        found = self._class.child(name)
        target = found.target if isinstance(found, Symlink) else None
        return target if isinstance(target, PciBusNodeDir) else None

    def entered(self, function: PciFunction, bridge: BridgeDir | HostBridgeDir) -> None:
        """A function has appeared below `bridge`, maybe on a bus that no other function is on."""
        name = function.address.bus_name
        if name in self._shown and name not in self._functions:
            return
        if name not in self._shown:
            emit(self.show(name, bridge), "add")
        self._functions.setdefault(name, set()).add(function.name)

    def left(self, function: PciFunction) -> None:
        """A function is gone. Its bus stays until `drop_empty`."""
        there = self._functions.get(function.address.bus_name)
        if there is not None:
            there.discard(function.name)

    def drop_empty(self) -> None:
        """Take away the buses that the last function has left. Call it when the function's own event has been
        emitted."""
        for name in [name for name, there in self._functions.items() if not there]:
            node = self.node(name)
            del self._functions[name]
            self.hide(name)
            if node is not None:
                emit(node, "remove")
