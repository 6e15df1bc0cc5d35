# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups of PCI functions in the tree: their directories, in which each member has a link, and the
character devices that they have while VFIO drives a member.

Owner is the trio thread.  The device lane makes entries of groups too (vfsfuse.kernfs.bundle).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from devmodel.vfio.group import Assignable, Group
from vfsfuse.kernfs.bundle import Bundle, Part, Plan, symlink_part
from vfsfuse.kernfs.kobject import Child, Kobject
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.iommu import IommuGroupDir
from vfsfuse.views.additions import Additions


class _Shown:
    """What is shown of a group: its directory, the link of each member by name, and the character device, as
    long as ``drivers`` is not 0."""

    __slots__ = ("bundle", "drivers", "links", "vfio")

    def __init__(self, bundle: Bundle, vfio: Bundle) -> None:
        self.bundle, self.vfio = bundle, vfio
        self.links: dict[str, Child] = {}
        self.drivers = 0


class GroupViews:
    """The groups of a lab that functions share.  `own` gives the directory of a member; `vfio` are the parts
    of a group's character device."""

    def __init__(
        self, tree: Tree, groups: Kobject, own: Callable[[Assignable], Kobject], vfio: Sequence[Part]
    ) -> None:
        self._tree = tree
        self._shown: dict[Group, _Shown] = {}
        directory = Part(
            groups, lambda group: str(group.number), lambda made: IommuGroupDir(made.device), directory=True
        )
        self._devices = Part(directory, lambda group: "devices", self._make_devices, directory=True)
        self._plan, self._vfio_plan = Plan(directory, self._devices), Plan(*vfio)
        self._link_plan = Plan(symlink_part(self._devices_of, lambda member: str(member.name), own))

    def enter(self, member: Assignable, added: Additions) -> None:
        """A member has appeared.  Its directory is there."""
        group = member.group
        shown = self._shown.get(group)
        if shown is None:
            shown = _Shown(Bundle(group, self._plan), Bundle(group, self._vfio_plan))
            self._tree.show(shown.bundle)
            self._shown[group] = shown
        link = Bundle(member, self._link_plan)
        shown.links[member.name] = link
        added.undo.callback(self._leave, member, link)
        self._tree.show(link)

    def bound(self, member: Assignable, added: Additions) -> None:
        """VFIO drives a member from now on."""
        shown = self._shown[member.group]
        if not shown.drivers:
            self._tree.show(shown.vfio)
        shown.drivers += 1
        added.undo.callback(self._unbound, shown)

    def drivers(self, group: Group) -> int:
        """How many members VFIO drives."""
        shown = self._shown.get(group)
        return 0 if shown is None else shown.drivers

    def _leave(self, member: Assignable, link: Bundle) -> None:
        shown = self._shown[member.group]
        self._tree.withdraw(link)
        del shown.links[member.name]
        if not shown.links:
            self._tree.withdraw(shown.bundle)
            del self._shown[member.group]

    def _unbound(self, shown: _Shown) -> None:
        shown.drivers -= 1
        if not shown.drivers:
            self._tree.withdraw(shown.vfio)

    def _devices_of(self, member: Assignable) -> Kobject:
        return self._shown[member.group].bundle.kobject_of(self._devices)

    def _make_devices(self, bundle: Bundle) -> Kobject:
        made = Kobject("devices")
        made.children = self._shown[bundle.device].links
        return made
