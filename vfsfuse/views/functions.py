# SPDX-License-Identifier: Apache-2.0
"""PCI functions in the tree, physical and virtual, and what their drivers add to them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from devmodel.lifecycle.function import VFIO_PCI, PciFunction, PhysicalFunction, VirtualFunction
from devmodel.lifecycle.mdev import Parent
from vfsfuse.kernfs.bundle import Bundle, Plan
from vfsfuse.kernfs.kobject import Symlink
from vfsfuse.sysfs.drivers import PciDriverDir
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.parent import HOST_MEMBERS, PhysicalFunctionDir
from vfsfuse.sysfs.sriov import SriovFunctionDir, VirtualFunctionDir
from vfsfuse.views.nodes import VfioNodes
from vfsfuse.views.places import Putter

if TYPE_CHECKING:
    from vfsfuse.views.labview import LabView

OF_DRIVERS = (*HOST_MEMBERS, "driver", "iommu_group")
"""Members that come and go with a function's driver."""


class FunctionViews:
    """The directories of PCI functions."""

    def __init__(self, view: LabView, nodes: VfioNodes) -> None:
        self._view, self._tree, self._nodes = view, view.tree, nodes
        self._directories: dict[PciFunction, PciFunctionDir] = {}
        self._shown: dict[PciFunction, ExitStack] = {}
        self._bound: dict[PciFunction, ExitStack] = {}
        self._group_plan, self._vfio_plan = Plan(*nodes.of_group), Plan(*nodes.of_vfio)
        for path in ("devices", "drivers", "slots"):
            view.tree.make(f"sys/bus/pci/{path}")

    def directory(self, function: PciFunction) -> PciFunctionDir:
        """The directory of a function that is shown."""
        return self._directories[function]

    def add_physical(self, parent: Parent, function: PhysicalFunction) -> PhysicalFunctionDir:
        """For as long as the lab lives."""
        kind = PhysicalFunctionDir if function.layout is None else SriovFunctionDir
        directory = directory_class(kind, type(function.device))(self._view, parent, function)
        self._show(function, directory, Putter(self._tree, ExitStack()))
        places = self._view.places.pci_drivers
        for driver in {parent.spec.driver, VFIO_PCI} - places.keys():
            made = PciDriverDir(driver, self._view.lab)
            places[driver] = self._tree.add(self._tree.make("sys/bus/pci/drivers"), made)
        self.bound(function)
        return directory

    def function_added(self, function: VirtualFunction) -> None:
        """The lab's observer."""
        kind = directory_class(VirtualFunctionDir, type(function.device))
        with ExitStack() as undo:
            put = Putter(self._tree, undo)
            directory = self._show(function, kind(self._view, function), put)
            put(self._directories[function.physical], Symlink(f"virtfn{function.index}", directory))
            self._shown[function] = undo.pop_all()

    def function_removed(self, function: VirtualFunction) -> None:
        """The lab's observer."""
        self._shown.pop(function).close()

    def bound(self, function: PciFunction) -> None:
        """The lab's observer."""
        directory, driver = self._directories[function], function.driver or ""
        with ExitStack() as undo:
            put = Putter(self._tree, undo)
            if driver == VFIO_PCI:
                self._show_vfio(function, put)
            else:
                self._view.vgpus.show_types(function.parent, directory, put)
            put(self._view.places.pci_drivers[driver], Symlink(function.name, directory))
            self._present_again(directory)
            self._bound[function] = undo.pop_all()

    def unbound(self, function: PciFunction) -> None:
        """The lab's observer."""
        self._bound.pop(function).close()
        self._present_again(self._directories[function])

    def _show(self, function: PciFunction, directory: PciFunctionDir, put: Putter) -> PciFunctionDir:
        """Everything by which a function is seen, but for its driver."""
        root = self._tree.make(f"sys/devices/pci{function.parent.function.address.bus_name}")
        put(root, directory)
        self._directories[function] = directory
        put.undo.callback(self._directories.pop, function)
        self._nodes.open_port(function)
        put.undo.callback(self._nodes.close_port, function)
        put(self._tree.make("sys/bus/pci/devices"), Symlink(function.name, directory))
        if not function.group.noiommu:
            put.show(Bundle(function, self._group_plan))
        return directory

    def _show_vfio(self, function: PciFunction, put: Putter) -> None:
        if function.group.noiommu:  # vfio itself makes the group, when it takes the function
            put.show(Bundle(function, self._group_plan))
        put.show(Bundle(function, self._vfio_plan))

    def _present_again(self, directory: PciFunctionDir) -> None:
        """Let the kernel ask again for what came or went with the driver."""
        for name in OF_DRIVERS:
            self._tree.hide(directory, name)
