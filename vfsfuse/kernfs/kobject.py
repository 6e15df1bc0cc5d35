# SPDX-License-Identifier: Apache-2.0
"""The sysfs contract: kobjects are directories, attributes are files that show and store text.

A class declares attributes and links (kernfs/members.py); this module numbers them.  Entries belong to the
trio thread; the device lane only looks an entry up by inode number and opens it.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import ClassVar, Protocol

from vfsfuse.kernfs.entry import MEMBER_BITS, PART_BITS, DeviceNode, Entry, Stat, Symlink, relative
from vfsfuse.kernfs.members import (
    PAGE_SIZE,
    Attribute,
    BinaryMember,
    LinkMember,
    Member,
    SnapshotMember,
    attribute,
    link,
    store_only,
    value_of,
)

__all__ = [
    "MEMBER_BITS",
    "PAGE_SIZE",
    "PART_BITS",
    "Attribute",
    "BinaryMember",
    "Child",
    "DeviceNode",
    "Entry",
    "Kobject",
    "LinkMember",
    "Member",
    "SnapshotMember",
    "Stat",
    "Symlink",
    "attribute",
    "link",
    "relative",
    "store_only",
    "value_of",
]


class Child(Protocol):
    """What a directory has under a name: an entry, or what makes one."""

    @property
    def block(self) -> int:
        """The number that those of its entries begin with."""

    def seen_in(self, directory: Kobject) -> Entry:
        """The entry of that name in `directory`."""


class Kobject(Entry):
    """A directory: the members its class declares, and children that come and go.

    A class declares members as class attributes (through the decorators above) and in a tuple `declared`, for
    those that several classes share.
    """

    __slots__ = ("children", "subdirs")

    declared: ClassVar[tuple[Member, ...]] = ()
    by_name: ClassVar[dict[str, Member]] = {}
    numbering: ClassVar[dict[str, int]] = {}

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.children: dict[str, Child] | None = None
        self.subdirs = 0

    def __init_subclass__(cls) -> None:
        own = [value for value in vars(cls).values() if isinstance(value, Member)]
        cls.by_name = {**cls.by_name, **{member.name: member for member in [*own, *cls.declared]}}
        cls.members = tuple(cls.by_name.values())
        cls.numbering = {member.name: index for index, member in enumerate(cls.members, start=1)}
        if len(cls.members) >= 1 << MEMBER_BITS:
            raise TypeError(f"{cls.__name__} declares too many members")

    def stat(self) -> Stat:
        return Stat(stat.S_IFDIR | 0o755, 0, 2 + self.subdirs)

    def child(self, name: str) -> Entry | None:
        """The child called `name`."""
        found = self.children.get(name) if self.children else None
        return None if found is None else found.seen_in(self)

    def find(self, name: str) -> Entry | Member | None:
        """The child or present member called `name`."""
        child = self.child(name)
        if child is not None:
            return child
        member = self.by_name.get(name)
        return member if member is not None and member.present(self) else None

    def hidden(self, name: str) -> int:
        """Inode of a name that can be looked up but is not listed.  Raises OSError(ENOENT)."""
        raise OSError(errno.ENOENT, name)

    def entries(self) -> Iterator[Child | Member]:
        """What is in it now."""
        yield from (member for member in self.members if member.present(self))
        yield from (self.children or {}).values()
