# SPDX-License-Identifier: Apache-2.0
"""Inodes in a directory of the tree, but for directories: what all have in common, symlinks and device nodes.

Entries belong to the trio thread; the device lane only looks one up by inode number and opens it.
"""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ioctl_shim.lane import DEVICE_BIT, Opened, OpenRequest

if TYPE_CHECKING:
    from vfsfuse.kernfs.kobject import Kobject
    from vfsfuse.kernfs.members import Member

MEMBER_BITS = 8
PART_BITS = 4
"""Bits of an entry's number that tell those of one device apart (vfsfuse.kernfs.bundle)."""


class Stat(NamedTuple):
    """What stat(2) shows of an entry: st_mode with its type, st_size, st_nlink, and owners that are not the
    mount's (None)."""

    mode: int
    size: int
    nlink: int = 1
    uid: int | None = None
    gid: int | None = None


class Lookup(NamedTuple):
    """What a name stands for: an inode number, its stat, and the entry whose times it has."""

    inode: int
    stat: Stat
    entry: Entry


class Entry(ABC):
    """A name in a directory: a Kobject, a Symlink or a DeviceNode.  `number` is unique for the mount's
    life."""

    __slots__ = ("ctime_ns", "name", "number", "parent")

    lane_bits: ClassVar[int] = 0
    members: ClassVar[tuple[Member, ...]] = ()
    """By index less one: what is in it by virtue of its class."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = -1
        self.parent: Kobject | None = None
        self.ctime_ns = 0

    def seen_in(self, directory: Kobject) -> Entry:
        """The entry itself; what else may be put into a directory makes its entry now (kernfs.bundle)."""
        return self

    @property
    def block(self) -> int:
        """Its number without the part."""
        return self.number >> PART_BITS

    @property
    def inode(self) -> int:
        return self.lane_bits | (self.number << MEMBER_BITS) + 1

    @property
    def path(self) -> str:
        """Path from the mount's root, without a leading slash; empty for the root itself."""
        if self.parent is None:
            return ""
        above = self.parent.path
        return f"{above}/{self.name}" if above else self.name

    @abstractmethod
    def stat(self) -> Stat:
        """What stat(2) shows."""

    def look(self, owner: Kobject) -> Lookup:
        """What a lookup in `owner`, or a listing of it, answers."""
        return Lookup(self.inode, self.stat(), self)


class Symlink(Entry):
    """A symlink child, as the kernel's class and bus directories hold them."""

    __slots__ = ("target",)

    def __init__(self, name: str, target: Entry) -> None:
        super().__init__(name)
        self.target = target

    def stat(self) -> Stat:
        return Stat(stat.S_IFLNK | 0o777, len(relative(self.parent, self.target)))


class DeviceNode(Entry):
    """A file under dev/: every open, ioctl, read and write of it is a call on the device lane."""

    __slots__ = ("gid", "mode", "opener", "size", "uid")

    lane_bits = DEVICE_BIT

    def __init__(self, name: str, mode: int, opener: Callable[[OpenRequest], Opened], size: int = 0) -> None:
        super().__init__(name)
        self.mode, self.opener, self.size = mode, opener, size
        self.uid: int | None = None
        self.gid: int | None = None

    def stat(self) -> Stat:
        return Stat(stat.S_IFREG | self.mode, self.size, 1, self.uid, self.gid)


def relative(directory: Entry | None, target: Entry) -> str:
    """The path of `target` seen from `directory`, as sysfs writes its symlinks."""
    above: dict[int, int] = {}
    while directory is not None:
        above[directory.number] = len(above)
        directory = directory.parent
    names: list[str] = []
    here: Entry = target
    while here.number not in above and here.parent is not None:
        names.append(here.name)
        here = here.parent
    names += [".."] * above.get(here.number, 0)
    return "/".join(reversed(names))
