# SPDX-License-Identifier: Apache-2.0
"""PCI functions in the tree, physical and virtual, and what their drivers add to them.  Trio thread."""

from __future__ import annotations

from contextlib import ExitStack

from devmodel.lifecycle.bridge import PCIEPORT, Bridge
from devmodel.lifecycle.function import VFIO_PCI, PciFunction, PhysicalFunction, VirtualFunction
from devmodel.lifecycle.vendor import vgpu_of
from vfsfuse.kernfs.bundle import Bundle, Plan
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.bridge import BridgeDir, HostBridgeDir
from vfsfuse.sysfs.drivers import PciDriverDir
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.parent import ParentFunctionDir
from vfsfuse.sysfs.slots import HotplugSlotDir, SlotDir
from vfsfuse.views.additions import Additions
from vfsfuse.views.buses import BusViews
from vfsfuse.views.iommus import IommuViews
from vfsfuse.views.models import physical_directory, virtual_directory
from vfsfuse.views.modules import ModuleViews
from vfsfuse.views.netdevs import NetViews
from vfsfuse.views.nodes import VfioNodes
from vfsfuse.views.vendor import VendorViews
from vfsfuse.views.vgpus import VgpuViews


class FunctionViews:
    """The directories of PCI functions."""

    def __init__(
        self, view: View, tree: Tree, nodes: VfioNodes, vgpus: VgpuViews, modules: ModuleViews
    ) -> None:
        self._view, self._tree, self._nodes, self._vgpus, self._modules = view, tree, nodes, vgpus, modules
        self._directories: dict[PciFunction, PciFunctionDir] = {}
        self._shown: dict[PciFunction, ExitStack] = {}
        self._bound: dict[PciFunction, ExitStack] = {}
        self._vfio_plan = Plan(*nodes.of_vfio)
        self._fake_group_plan = Plan(*nodes.of_fake_group, *nodes.of_vfio_group)
        for path in ("devices", "drivers", "slots"):
            tree.make(f"sys/bus/pci/{path}")
        for slot in view.lab.hotplug.slots.fixed:
            tree.add(tree.make("sys/bus/pci/slots"), SlotDir(slot.name, slot.address))
        self._buses, self.iommus = BusViews(view, tree), IommuViews(view, tree)
        for root in view.lab.hotplug.buses.roots:
            self._buses.host(root)
        self.vendor = VendorViews(view, tree, nodes)
        self.net = NetViews(view.lab.spec, view.lab.net, tree)

    def directory(self, function: PciFunction) -> PciFunctionDir:
        """The directory of a function that is shown.  Raises LookupError when it is not."""
        return self._directories[function]

    def function_added(self, function: PciFunction) -> None:
        """The lab's observer."""
        with ExitStack() as failed, ExitStack() as undo:
            failed.callback(self._buses.drop_empty)
            added = Additions(self._tree, undo)
            if isinstance(function, VirtualFunction):
                self._add_virtual(function, added)
            elif isinstance(function, PhysicalFunction):
                self._add_physical(function, added)
            elif isinstance(function, Bridge):
                self._add_bridge(function, added)
            self._shown[function] = undo.pop_all()
            failed.pop_all()

    def function_removed(self, function: PciFunction) -> None:
        """The lab's observer."""
        self._shown.pop(function).close()

    def bus_below(self, function: PciFunction) -> Kobject | None:
        """The directory of the bus below a bridge that is shown; None for another function."""
        return self._buses.node(function.bus_below) if isinstance(function, Bridge) else None

    def drop_empty_buses(self) -> None:
        """After the events of functions that were removed."""
        self._buses.drop_empty()

    def _add_bridge(self, bridge: Bridge, added: Additions) -> None:
        """A bridge, and the bus below it."""
        directory = BridgeDir(self._view, bridge)
        self.make_drivers(*bridge.spec.drivers)
        self._show(bridge, directory, added)
        self._buses.show(bridge.bus_below, directory)
        added.undo.callback(self._buses.hide, bridge.bus_below)

    def _add_physical(self, function: PhysicalFunction, added: Additions) -> None:
        kind = physical_directory(function.spec)
        directory = directory_class(kind, function.model)(self._view, function)
        self.make_drivers(VFIO_PCI)
        self._show(function, directory, added)
        if isinstance(directory, ParentFunctionDir):
            self._vgpus.add_parent(directory.parent_device, directory)
            added.undo.callback(self._vgpus.remove_parent, directory.parent_device)

    def _add_virtual(self, function: VirtualFunction, added: Additions) -> None:
        kind = directory_class(virtual_directory(function.physical.spec), function.model)
        directory = self._show(function, kind(self._view, function), added)
        added.add(self._directories[function.physical], Symlink(f"virtfn{function.index}", directory))

    def bound(self, function: PciFunction) -> None:
        """The lab's observer."""
        directory, driver = self._directories[function], function.driver or ""
        with ExitStack() as undo:
            added = Additions(self._tree, undo)
            vgpu = vgpu_of(function)
            if vgpu is not None:
                self._show_group(function, added)
                self.vendor.show(vgpu, added)
            elif driver == VFIO_PCI:
                self._show_vfio(function, added)
            elif driver == PCIEPORT:
                self._show_slot(function, added)
            else:
                self.net.show(function, directory, added)
                if isinstance(directory, ParentFunctionDir):
                    self._vgpus.show_types(directory.parent_device, directory, added)
            added.add(self._view.subsystems.pci_drivers[driver], Symlink(function.name, directory))
            self._bound[function] = undo.pop_all()

    def unbound(self, function: PciFunction) -> None:
        """The lab's observer."""
        self._bound.pop(function).close()
        self._tree.driver_left(self._directories[function])

    def _show_slot(self, port: PciFunction, added: Additions) -> None:
        """The slot of a port, if it has one: pciehp drives it."""
        slot = self._view.lab.cards.slot_of(port)
        if slot is not None:
            added.add(self._tree.make("sys/bus/pci/slots"), HotplugSlotDir(self._view, slot, port))

    def make_drivers(self, *names: str) -> None:
        """Add the directories of drivers, as far as they are not there."""
        drivers = self._view.subsystems.pci_drivers
        for name in set(names) - drivers.keys():
            made = PciDriverDir(name, self._view.lab, self._modules.of_driver(name))
            drivers[name] = self._tree.add(self._tree.make("sys/bus/pci/drivers"), made)
            self._modules.registered("pci", made)

    def _above(self, function: PciFunction) -> BridgeDir | HostBridgeDir:
        """The directory that a function is in: that of the bridge above it, or of the host bridge."""
        if function.upstream is None:
            own = function.physical if isinstance(function, VirtualFunction) else function
            return self._buses.host(own.address.bus_name)
        above = self._directories[function.upstream]
        assert isinstance(above, BridgeDir)
        return above

    def _show(self, function: PciFunction, directory: PciFunctionDir, added: Additions) -> PciFunctionDir:
        """Show everything of a function, except what its driver adds."""
        above = self._above(function)
        self._buses.entered(function, above)
        added.undo.callback(self._buses.left, function)
        added.add(above, directory)
        self._tree.adopt(directory.msi_directory)
        added.undo.callback(self._tree.forget, directory.msi_directory)
        self._directories[function] = directory
        added.undo.callback(self._directories.pop, function)
        self._nodes.open_port(function)
        added.undo.callback(self._nodes.close_port, function)
        added.add(self._tree.make("sys/bus/pci/devices"), Symlink(function.name, directory))
        self.iommus.show(function, directory, added)
        if not function.group.noiommu:
            self._nodes.groups.enter(function, added)
        return directory

    def _show_vfio(self, function: PciFunction, added: Additions) -> None:
        self._show_group(function, added)
        added.show(Bundle(function, self._vfio_plan))

    def _show_group(self, function: PciFunction, added: Additions) -> None:
        """Show the character device of the function's group."""
        if function.group.noiommu:  # without an IOMMU, VFIO makes the group when it takes the function
            added.show(Bundle(function, self._fake_group_plan))
        else:
            self._nodes.groups.bound(function, added)
