# SPDX-License-Identifier: Apache-2.0
"""Network interfaces in the tree: below their function while the host driver has it, and in sys/class/net.

A lab with interfaces has the loopback, too, as every machine.  So `vfsfuse run` sees that sys/class/net is
the lab's own, and does not cover it by the machine's.  Trio thread.
"""

from __future__ import annotations

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.netdev import NetCore, NetDevice, has_interfaces, interface_names
from devmodel.lifecycle.spec import LabSpec
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.net import NetDeviceDir
from vfsfuse.views.additions import Additions

NET = "net"


class NetViews:
    """The directories of a lab's network interfaces."""

    def __init__(self, spec: LabSpec, net: NetCore, tree: Tree) -> None:
        self._net, self._tree = net, tree
        self._shown: dict[PciFunction, Kobject] = {}
        self._class = tree.make("sys/class/net")
        if has_interfaces(spec.all_functions):
            loopback = NetDeviceDir(NetDevice.loopback(), self._class, None)
            tree.add(tree.make("sys/devices/virtual/net"), loopback)
            tree.add(self._class, Symlink(loopback.name, loopback))

    def directory(self, function: PciFunction) -> Kobject | None:
        """The directory of a function's interfaces, None while it has none.  Any thread."""
        return self._shown.get(function)

    def has(self, function: PciFunction) -> bool:
        """Whether a function has interfaces while its host driver drives it."""
        return bool(interface_names(function))

    def show(self, function: PciFunction, directory: Kobject, added: Additions) -> None:
        """The function has its host driver, which registers its interfaces."""
        interfaces = self._net.register(function)
        if not interfaces:
            return
        added.undo.callback(self._net.unregister, function)
        above = Kobject(NET)
        above.parent = directory
        self._tree.adopt(above)
        added.undo.callback(self._tree.drop, above)
        self._shown[function] = above
        added.undo.callback(self._shown.pop, function)
        for interface in interfaces:
            made = added.add(above, NetDeviceDir(interface, self._class, directory))
            added.add(self._class, Symlink(made.name, made))

    def of(self, function: PciFunction) -> list[NetDeviceDir]:
        """The directories of a function's interfaces."""
        above = self._shown.get(function)
        found = [] if above is None else [above.child(each.name) for each in self._net.of(function)]
        return [each for each in found if isinstance(each, NetDeviceDir)]
