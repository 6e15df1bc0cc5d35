# SPDX-License-Identifier: Apache-2.0
"""sys/module: the modules of a lab, the modules that use them, and the drivers that they register.

Trio thread; nothing in it changes while the lab lives.
"""

from __future__ import annotations

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.spec import Framework
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.modules import (
    HOST_DRIVER,
    MODULES,
    OF_MDEV,
    OF_PARENT,
    PCIEHP,
    TYPE1,
    LoadedModuleDir,
    Module,
    ModuleDir,
    module_name,
)


class ModuleViews:
    """The directories of modules."""

    def __init__(self, tree: Tree, lab: Lab) -> None:
        self._tree, self._lab = tree, lab
        self._top = tree.make("sys/module")
        self._modules: dict[str, ModuleDir] = {}
        absent = () if lab.spec.mdev else OF_MDEV
        mdev = (parent for parent in lab.spec.parents if parent.framework is Framework.MDEV)
        self._parents = {parent.driver for parent in mdev}
        for name in MODULES:
            if name not in absent and self._is_loaded(name):
                self._add(name)

    def host_driver(self, driver: str) -> ModuleDir:
        """The module of a host driver, which is added if it is not there."""
        return self._add(module_name(driver), OF_PARENT if driver in self._parents else HOST_DRIVER)

    def find(self, name: str) -> ModuleDir | None:
        """A module by its name, None without one."""
        return self._modules.get(name)

    def _is_loaded(self, name: str) -> bool:
        spec = self._lab.spec
        if name == TYPE1:
            return spec.groups and not spec.iommufd_container
        return name != PCIEHP or bool(self._lab.hotplug.slots.by_bus)

    def of_driver(self, driver: str) -> ModuleDir:
        """The module of a driver.  Raises LookupError without one."""
        return self._modules[module_name(driver)]

    def registered(self, bus: str, driver: Kobject) -> None:
        """The module of a driver has registered it with a bus.

        driverctl(8) looks for a directory with the driver's name, and calls modprobe(8) when there is none.
        modprobe knows the machine's modules only, so a driver with a dash in its name has a link here.
        """
        module = self.of_driver(driver.name)
        drivers = self._tree.make(f"{module.path}/drivers")
        self._tree.add(drivers, Symlink(f"{bus}:{driver.name}", driver))
        if "-" in driver.name:
            self._tree.add(self._top, Symlink(driver.name, module))

    def _add(self, name: str, module: Module | None = None) -> ModuleDir:
        made = self._modules.get(name)
        if made is not None:
            return made
        declared = module or MODULES[name]
        kind = ModuleDir if declared.built_in else LoadedModuleDir
        made = self._modules[name] = self._tree.add(self._top, kind(name))
        if declared.built_in:
            return made
        self._tree.add(made, Kobject("holders"))
        if declared.parameters is not None:
            self._tree.add(made, declared.parameters("parameters", self._lab))
        for used in declared.uses:
            self._tree.add(self._tree.make(f"{self._add(used).path}/holders"), Symlink(name, made))
        return made
