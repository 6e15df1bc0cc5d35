# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups of PCI functions in the tree: their directories, in which each member has a link, and the
character devices that they have while VFIO drives a member.

Owner is the trio thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from devmodel.vfio.group import Assignable, Group
from vfsfuse.kernfs.bundle import Bundle, Part, Plan
from vfsfuse.kernfs.kobject import LINGER_NS, Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.iommu import IommuGroupDir
from vfsfuse.views.additions import Additions


class _Shown:
    """What is shown of a group: its directory, in which `devices` has the links of members, and the character
    device `vfio`, as long as VFIO has `drivers` in it."""

    __slots__ = ("devices", "directory", "drivers", "vfio")

    def __init__(self, directory: IommuGroupDir, devices: Kobject) -> None:
        self.directory, self.devices = directory, devices
        self.drivers = 0
        self.vfio: Bundle | None = None


class GroupViews:
    """The groups of a lab that functions share.  `groups` is the directory of all groups; `own` gives that of
    a member; `vfio` are the parts of a group's character device."""

    def __init__(
        self, tree: Tree, groups: Kobject, own: Callable[[Assignable], Kobject], vfio: Sequence[Part]
    ) -> None:
        self._tree, self._groups, self._own = tree, groups, own
        self._shown: dict[Group, _Shown] = {}
        self._plan = Plan(*vfio)

    def enter(self, member: Assignable, added: Additions) -> None:
        """A member has appeared.  Its directory is there."""
        self.add(member)
        added.undo.callback(self.drop, member)
        added.add(self.devices_of(member), Symlink(member.name, self._own(member)))

    def add(self, member: Assignable) -> None:
        """A member is about to have its link in the directory of `devices_of`."""
        if member.group not in self._shown:
            self._show(member.group)

    def drop(self, member: Assignable) -> None:
        """The link of a member is gone.  Does nothing when the whole group is."""
        shown = self._shown.get(member.group)
        if shown is not None and not shown.devices.children:
            self._tree.remove(shown.directory)
            del self._shown[member.group]

    def devices_of(self, member: Assignable) -> Kobject:
        """The directory that has the links of the members of a group."""
        return self._shown[member.group].devices

    def bound(self, member: Assignable, added: Additions) -> None:
        """VFIO drives a member from now on."""
        shown = self._shown[member.group]
        if shown.vfio is None:
            bundle = Bundle(member.group, self._plan)
            self._tree.show(bundle)
            shown.vfio = bundle
        shown.drivers += 1
        added.undo.callback(self._unbound, shown)

    def drivers(self, group: Group) -> int:
        """How many members VFIO drives."""
        shown = self._shown.get(group)
        return 0 if shown is None else shown.drivers

    def _show(self, group: Group) -> None:
        directory = IommuGroupDir(group)
        directory.name_ns = LINGER_NS
        self._tree.add(self._groups, directory)
        self._shown[group] = _Shown(directory, self._tree.add(directory, Kobject("devices")))

    def _unbound(self, shown: _Shown) -> None:
        shown.drivers -= 1
        if not shown.drivers and shown.vfio is not None:
            self._tree.withdraw(shown.vfio)
            shown.vfio = None
