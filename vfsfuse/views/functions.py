# SPDX-License-Identifier: Apache-2.0
"""PCI functions in the tree, physical and virtual, and what their drivers add to them.  Trio thread."""

from __future__ import annotations

from contextlib import ExitStack

from devmodel.lifecycle.bridge import PCIEPORT, Bridge
from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.physical import PhysicalFunction, VirtualFunction
from devmodel.lifecycle.vendor import vgpu_of
from vfsfuse.kernfs.bundle import Bundle, Plan
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.bridge import BridgeDir, HostBridgeDir
from vfsfuse.sysfs.drivers import PciDriverDir
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.msi import MsiIrqsDir
from vfsfuse.sysfs.parent import ParentFunctionDir
from vfsfuse.sysfs.slots import HotplugSlotDir, SlotDir
from vfsfuse.views.additions import Additions
from vfsfuse.views.buses import BusViews
from vfsfuse.views.endpoints import EndpointViews
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
        self._endpoints = EndpointViews(
            view, tree, nodes.groups, self.iommus, self._above, self._physical_directory
        )
        self._msi: dict[PciFunction, MsiIrqsDir] = {}

    def directory(self, function: PciFunction) -> PciFunctionDir:
        """The directory of a function that is shown.  Any thread.  Raises LookupError when it is not."""
        found = self._directories.get(function)
        return self._endpoints.directory(function) if found is None else found

    def msi_dir(self, directory: PciFunctionDir) -> MsiIrqsDir:
        """The directory of the interrupts by message below that of a function, made at the first call.  Any
        thread."""
        function = directory.assignable
        found = self._msi.get(function)
        if found is None:
            made = MsiIrqsDir(directory, function)
            self._tree.adopt(made)
            found = self._msi.setdefault(function, made)
            if found is not made:
                self._tree.forget(made)
        found.parent = directory
        return found

    def function_added(self, function: PciFunction) -> None:
        """The lab's observer."""
        if EndpointViews.takes(function):
            self._add_endpoint(function)
            return
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
        msi = self._msi.pop(function, None)
        if msi is not None:
            self._tree.forget(msi)
        if function in self._endpoints:
            self._nodes.close_port(function)
            self._endpoints.hide(function)
            self._buses.left(function)
        else:
            self._shown.pop(function).close()

    def renewed(self, function: PciFunction) -> None:
        """The function has another model."""
        directory = self.directory(function)
        if function in self._directories:
            directory.__class__ = directory_class(_kind_of(function), function.model)
        self._tree.renew(directory)

    def bus_below(self, function: PciFunction) -> Kobject | None:
        """The directory of the bus below a bridge that is shown; None for another function."""
        return self._buses.node(function.bus_below) if isinstance(function, Bridge) else None

    def drop_empty_buses(self) -> None:
        """After the events of functions that were removed."""
        self._buses.drop_empty()

    def _add_endpoint(self, function: PciFunction) -> None:
        if isinstance(function, PhysicalFunction):
            self.make_drivers(VFIO_PCI)
        self._buses.entered(function, self._above(function))
        try:
            self._endpoints.show(function)
        except BaseException:
            self._buses.left(function)
            self._buses.drop_empty()
            raise
        self._nodes.open_port(function)

    def _add_bridge(self, bridge: Bridge, added: Additions) -> None:
        """A bridge, and the bus below it."""
        directory = BridgeDir(self._view, bridge)
        self.make_drivers(*bridge.spec.drivers)
        self._show(bridge, directory, added)
        self._buses.show(bridge.bus_below, directory)
        added.undo.callback(self._buses.hide, bridge.bus_below)

    def _add_physical(self, function: PhysicalFunction, added: Additions) -> None:
        directory = directory_class(_kind_of(function), function.model)(self._view, function)
        self.make_drivers(VFIO_PCI)
        self._show(function, directory, added)
        if isinstance(directory, ParentFunctionDir):
            self._vgpus.add_parent(directory.parent_device, directory)
            added.undo.callback(self._vgpus.remove_parent, directory.parent_device)

    def _add_virtual(self, function: VirtualFunction, added: Additions) -> None:
        directory = directory_class(_kind_of(function), function.model)(self._view, function)
        self._show(function, directory, added)
        link = Symlink(f"virtfn{function.index}", directory)
        added.add(self._physical_directory(function), link)

    def bound(self, function: PciFunction) -> None:
        """The lab's observer."""
        if function in self._endpoints and function.assigned is None and not self.net.has(function):
            self._endpoints.bound(function, function.driver or "")
            return
        with ExitStack() as undo:
            added = Additions(self._tree, undo)
            vgpu = vgpu_of(function)
            if vgpu is not None:
                self._show_group(function, added)
                self.vendor.show(vgpu, added)
            elif function.driver == VFIO_PCI:
                self._show_vfio(function, added)
            elif function.driver == PCIEPORT:
                self._show_slot(function, added)
            else:
                self._show_host(function, added)
            self._show_driver(function, function.driver or "", added)
            self._bound[function] = undo.pop_all()

    def unbound(self, function: PciFunction) -> None:
        """The lab's observer."""
        shown = self._bound.pop(function, None)
        if shown is None:
            self._endpoints.unbound(function)
        else:
            shown.close()
        self._tree.driver_left(self.directory(function))

    def _show_host(self, function: PciFunction, added: Additions) -> None:
        """Show what the host driver of a function adds."""
        directory = self.directory(function)
        self.net.show(function, directory, added)
        if isinstance(directory, ParentFunctionDir):
            self._vgpus.show_types(directory.parent_device, directory, added)

    def _show_driver(self, function: PciFunction, driver: str, added: Additions) -> None:
        """Show the link of a driver to a function."""
        if function in self._endpoints:
            self._endpoints.bound(function, driver)
            added.undo.callback(self._endpoints.unbound, function)
        else:
            link = Symlink(function.name, self.directory(function))
            added.add(self._view.subsystems.pci_drivers[driver], link)

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

    def _physical_directory(self, function: PciFunction) -> PciFunctionDir:
        """That of the physical function of a virtual one."""
        assert isinstance(function, VirtualFunction)
        return self._directories[function.physical]

    def _show(self, function: PciFunction, directory: PciFunctionDir, added: Additions) -> None:
        """Show everything of a function, except what its driver adds."""
        above = self._above(function)
        self._buses.entered(function, above)
        added.undo.callback(self._buses.left, function)
        added.add(above, directory)
        self._directories[function] = directory
        added.undo.callback(self._directories.pop, function)
        self._nodes.open_port(function)
        added.undo.callback(self._nodes.close_port, function)
        added.add(self._tree.make("sys/bus/pci/devices"), Symlink(function.name, directory))
        self.iommus.show(function, directory, added)
        if not function.group.noiommu:
            self._nodes.groups.enter(function, added)

    def _show_vfio(self, function: PciFunction, added: Additions) -> None:
        self._show_group(function, added)
        self._show_device(function, Bundle(function, self._vfio_plan), added)

    def _show_device(self, function: PciFunction, vfio: Bundle, added: Additions) -> None:
        """Show the device of VFIO below a function."""
        if function in self._endpoints:
            self._endpoints.vfio_came(function, vfio)
            added.undo.callback(self._endpoints.vfio_left, function)
        added.show(vfio)

    def _show_group(self, function: PciFunction, added: Additions) -> None:
        """Show the character device of the function's group."""
        if function.group.noiommu:  # without an IOMMU, VFIO makes the group when it takes the function
            added.show(Bundle(function, self._fake_group_plan))
        else:
            self._nodes.groups.bound(function, added)


def _kind_of(function: PciFunction) -> type[PciFunctionDir]:
    """The kind of directory that a function has which is no bridge."""
    if isinstance(function, VirtualFunction):
        return virtual_directory(function.physical.spec)
    assert isinstance(function, PhysicalFunction)
    return physical_directory(function.spec)
