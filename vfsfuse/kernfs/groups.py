# SPDX-License-Identifier: Apache-2.0
"""Directories that a class of kobjects declares: named attribute groups, such as `power`.

    class PowerGroup(AttributeGroup):
        @attribute(0o644)
        def control(self) -> str: ...  # self.owner is the directory that the group is in

    class DeviceDir(Kobject):
        power = Group("power", PowerGroup)

A group costs nothing for each directory that has it: its inode numbers follow that of the group in the
numbering of the class, and its object is made when somebody looks.  So a group keeps no state.  A group may
be in another one.  A directory with files that no class can declare is an entry of its own; `Below` puts it
into a directory.

Both lanes make groups.  Source: Documentation/filesystems/sysfs.rst, struct attribute_group.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import Any

from vfsfuse.kernfs.kobject import MEMBER_BITS, Entry, Kobject, Lookup, Member, Numbered, Stat

When = Callable[[Any], bool]


class AttributeGroup(Kobject):
    """A directory of attributes below the directory `owner`, whose number and times it has.

    Its `parent` is the directory that it is in: `owner`, or another group.
    """

    __slots__ = ("owner", "place")
    owner: Any

    def __init__(self, name: str, owner: Kobject, place: int, above: Kobject | None = None) -> None:
        """`place` is the group's number among the members of `owner`, `above` the group that it is in."""
        super().__init__(name)
        self.owner, self.place, self.parent = owner, place, above or owner
        self.number, self.ctime_ns = owner.number, owner.ctime_ns

    @classmethod
    def number_members(cls) -> None:
        """Members of a group are numbered with those of the class that has the group."""

    @property
    def holder(self) -> Entry:
        return self.parent.holder if self.parent is not None else self

    @property
    def inode(self) -> int:
        return (self.number << MEMBER_BITS | self.place) + 1


class Group(Member):
    """A named attribute group of the class `kind`.  Without a `when` it is always present."""

    __slots__ = ("_when", "always", "kind")

    directory = True

    def __init__(self, name: str, kind: type[AttributeGroup], when: When | None = None) -> None:
        """`kind` declares no directories but groups."""
        super().__init__(name)
        if any(member.directory and not isinstance(member, Group) for member in kind.members):
            raise TypeError(f"the group {name} has directories in it that are no groups")
        self.kind, self._when, self.always = kind, when, when is None
        self.name_ns = 0  # who has the directory above open finds no such name once that is gone

    def numbered(self, first: int) -> Sequence[Numbered]:
        return _Placed(self, first, None).numbered

    def present(self, owner: Any) -> bool:
        return self._when is None or self._when(owner)

    def stat(self, owner: Any) -> Stat:
        return self.kind(self.name, owner.holder, 0, owner).stat()


class _Placed:
    """A group in the numbering of one class, `first` being its own number.  `above` is the group that it is
    in, if it is in one."""

    __slots__ = ("_above", "_first", "_group", "_kind", "numbered")

    def __init__(self, group: Group, first: int, above: _Placed | None) -> None:
        self._group, self._first, self._above = group, first, above
        self.numbered = [Numbered(self, None)]
        numbering: dict[str, int] = {}
        for member in group.kind.members:
            number = numbering[member.name] = first + len(self.numbered)
            if isinstance(member, Group):
                self.numbered += _Placed(member, number, self).numbered
            else:
                self.numbered.append(Numbered(self, member))
        placed: type[AttributeGroup] = type(group.kind.__name__, (group.kind,), {"__slots__": ()})
        placed.numbering = numbering
        self._kind = placed

    def of(self, owner: Any) -> AttributeGroup | None:
        """The group below `owner`, None while it is not present."""
        above = owner if self._above is None else self._above.of(owner)
        if above is None or not self._group.present(above):
            return None
        return self._kind(self._group.name, owner, self._first, above)


class Below(Member):
    """A directory that is an entry of its own, and present while `find` gives it.

    The kernel does not cache its name: it comes and goes without the tree being told.
    """

    __slots__ = ("_find",)

    directory = True

    def __init__(self, name: str, find: Callable[[Any], Kobject | None]) -> None:
        super().__init__(name)
        self._find, self.name_ns = find, 0

    def present(self, owner: Any) -> bool:
        return self._find(owner) is not None

    def stat(self, owner: Any) -> Stat:
        found = self._find(owner)
        return Stat(stat.S_IFDIR | 0o755, 0) if found is None else found.stat()

    def lookup(self, owner: Kobject) -> Lookup:
        found = self._find(owner)
        if found is None:
            raise FileNotFoundError(self.name)
        return Lookup(found.inode, found.stat(), found)
