# SPDX-License-Identifier: Apache-2.0
"""Functions below which nothing comes and goes, in the tree: their entries are made when a client looks at
them, so that each of many thousands costs little.  Trio thread; the device lane makes entries too.

These are physical functions without SR-IOV and without vGPUs, and virtual ones that are no vGPUs.  Below
their directories is only what VFIO adds; the rest are members.
"""

from __future__ import annotations

from collections.abc import Callable

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.physical import PhysicalFunction, VirtualFunction
from vfsfuse.kernfs.bundle import Bundle, Part, Plan, symlink_part
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.sriov import VirtualFunctionDir
from vfsfuse.views.groups import GroupViews
from vfsfuse.views.iommus import IommuViews
from vfsfuse.views.models import physical_directory, virtual_directory
from vfsfuse.views.nodes import VFIO_DEV

Where = Callable[[PciFunction], Kobject]


class EndpointViews:
    """The entries of such functions.  `above` gives the directory that a function is in, `physical` that of
    the physical function of a virtual one."""

    def __init__(
        self, view: View, tree: Tree, groups: GroupViews, iommus: IommuViews, above: Where, physical: Where
    ) -> None:
        self._view, self._tree, self._groups, self._iommus = view, tree, groups, iommus
        self._own = Part(above, _name, self._make_own, directory=True)
        self._bus_link = symlink_part(tree.make("sys/bus/pci/devices"), _name, self._own)
        self._vf_link = symlink_part(physical, _vf_name, self._own)
        self._unit_link = symlink_part(iommus.devices_of, _name, self._own)
        self._group_link = symlink_part(groups.devices_of, _name, self._own)
        self._plans: dict[tuple[bool, bool, bool], Plan] = {}
        self._driver_plans: dict[str, Plan] = {}
        self._shown: dict[PciFunction, Bundle] = {}
        self._bound: dict[PciFunction, Bundle] = {}
        self._vfio: dict[PciFunction, Bundle] = {}

    def __contains__(self, function: PciFunction) -> bool:
        """Whether the function is shown by this."""
        return function in self._shown

    @staticmethod
    def takes(function: PciFunction) -> bool:
        """Whether a function is one of those that are shown by this."""
        if isinstance(function, PhysicalFunction):
            return function.parent is None and function.layout is None
        if isinstance(function, VirtualFunction):
            return virtual_directory(function.physical.spec) is VirtualFunctionDir
        return False

    def directory(self, function: PciFunction) -> PciFunctionDir:
        """The directory of a function that is shown, made anew.  Any thread.  Raises LookupError when it is
        not."""
        made = self._shown[function].entry_of(self._own)
        assert isinstance(made, PciFunctionDir)
        return made

    def show(self, function: PciFunction) -> None:
        """Show everything of a function, except what its driver adds.  Raises OSError(EEXIST)."""
        bundle = self._shown[function] = Bundle(function, self._plan_of(function))
        try:
            if not function.group.noiommu:
                self._groups.add(function)
            self._tree.show(bundle)
        except BaseException:
            self.hide(function)
            raise

    def hide(self, function: PciFunction) -> None:
        """The opposite of `show`."""
        self._tree.withdraw(self._shown[function])
        if not function.group.noiommu:
            self._groups.drop(function)
        del self._shown[function]

    def bound(self, function: PciFunction, driver: str) -> None:
        """The function has a driver now, which has a link to it."""
        plan = self._driver_plans.get(driver)
        if plan is None:
            link = symlink_part(self._view.subsystems.pci_drivers[driver], _name, self.directory)
            plan = self._driver_plans[driver] = Plan(link, rare=True)
        bundle = Bundle(function, plan)
        self._tree.show(bundle)
        self._bound[function] = bundle

    def unbound(self, function: PciFunction) -> None:
        """The opposite of `bound`."""
        self._tree.withdraw(self._bound.pop(function))

    def vfio_came(self, function: PciFunction, bundle: Bundle) -> None:
        """VFIO has added its directory below that of the function."""
        self._vfio[function] = bundle

    def vfio_left(self, function: PciFunction) -> None:
        """The opposite of `vfio_came`."""
        self._vfio.pop(function, None)

    def _plan_of(self, function: PciFunction) -> Plan:
        virtual, iommu = isinstance(function, VirtualFunction), not function.group.noiommu
        unit = function.unit is not None
        plan = self._plans.get((virtual, iommu, unit))
        if plan is None:
            links = (
                (virtual, self._vf_link),
                (True, self._bus_link),
                (unit, self._unit_link),
                (iommu, self._group_link),
            )
            plan = Plan(self._own, *(part for wanted, part in links if wanted), rare=True)
            self._plans[virtual, iommu, unit] = plan
        return plan

    def _make_own(self, bundle: Bundle) -> PciFunctionDir:
        function: PciFunction = bundle.device
        own: PciFunctionDir
        if isinstance(function, VirtualFunction):
            of_vf = directory_class(virtual_directory(function.physical.spec), function.model)
            own = of_vf(self._view, function)
        else:
            assert isinstance(function, PhysicalFunction)
            own = directory_class(physical_directory(function.spec), function.model)(self._view, function)
        vfio = self._vfio.get(function)
        if vfio is not None:
            own.children, own.subdirs = {VFIO_DEV: vfio}, 1
        return own


def _name(function: PciFunction) -> str:
    return function.name


def _vf_name(function: PciFunction) -> str:
    assert isinstance(function, VirtualFunction)
    return f"virtfn{function.index}"
