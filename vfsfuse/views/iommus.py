# SPDX-License-Identifier: Apache-2.0
"""IOMMU units in the tree, each with links to the functions behind it.  Trio thread."""

from __future__ import annotations

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.iommuunit import IommuUnit
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.iommu import IommuUnitDir
from vfsfuse.sysfs.lab import View
from vfsfuse.views.additions import Additions


class IommuViews:
    """The directories of a lab's IOMMU units."""

    def __init__(self, view: View, tree: Tree) -> None:
        self._view = view
        self._units: dict[IommuUnit, IommuUnitDir] = {}
        self._devices: dict[IommuUnit, Kobject] = {}
        units = tree.make("sys/class/iommu")
        for unit in view.lab.iommu_units:
            above = tree.make("sys/devices/virtual/iommu")
            made = self._units[unit] = tree.add(above, IommuUnitDir(unit, view.lab, units))
            self._devices[unit] = tree.add(made, Kobject("devices"))
            tree.add(units, Symlink(unit.name, made))

    def unit_dir(self, function: PciFunction) -> IommuUnitDir | None:
        """The directory of the unit that the function is behind, None without one.  Any thread."""
        unit = function.unit
        return None if unit is None else self._units[unit]

    def devices_of(self, function: PciFunction) -> Kobject:
        """The directory that has the functions behind the unit of a function, which has one."""
        if function.unit is None:
            raise LookupError(function.name)
        return self._devices[function.unit]

    def show(self, function: PciFunction, directory: Kobject, added: Additions) -> None:
        """A function has appeared."""
        unit = function.unit
        if unit is not None:
            added.add(self._devices[unit], Symlink(function.name, directory))
