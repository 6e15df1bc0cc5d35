# SPDX-License-Identifier: Apache-2.0
"""What the tree is made of: kobjects, which are directories, symlinks, device nodes, and members of a class.

A directory has children, which come and go, and members, which its class declares (kernfs/members.py).  All
of them are numbered here: an inode number tells the entry and, in its lowest bits, the member.  A member may
be a named attribute group (kernfs/groups.py), a directory whose files are numbered with the members.

Entries belong to the trio thread.  The device lane only looks an entry up by its inode number, and opens it.
Source: Documentation/core-api/kobject.rst, Documentation/filesystems/sysfs.rst.
"""

from __future__ import annotations

import errno
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from ioctl_shim.abi import NodeKind
from ioctl_shim.lane import DEVICE_BIT, Opener

MEMBER_BITS = 8
"""Bits of an inode number that tell an entry's members apart."""
PART_BITS = 4
"""Bits of an entry's number that tell the entries of one device apart (vfsfuse.kernfs.bundle)."""
LINGER_NS = 70_000_000
"""The kernel caches the name of what goes rarely, such as a virtual function or a driver's, for so many
nanoseconds."""
FORGOTTEN_NS = LINGER_NS + 30_000_000
"""Whoever removes such a name gets the answer after so many nanoseconds.  The kernel counts in clock ticks of
up to 10 ms: it rounds the time up, begins it when the process that asked runs again, and ends it a tick late.
"""


class Stat(NamedTuple):
    """What stat(2) shows of an entry: st_mode with the file type, st_size in bytes, st_nlink, and the owners.
    None as an owner means the owner of the mount."""

    mode: int
    size: int
    nlink: int = 1
    uid: int | None = None
    gid: int | None = None


SYMLINK = Stat(stat.S_IFLNK | 0o777, 0)
"""Of every symlink: in sysfs they have no size."""


class Lookup(NamedTuple):
    """What a name stands for: an inode number, its stat, and the entry whose times it has."""

    inode: int
    stat: Stat
    entry: Entry


class Entry(ABC):
    """A name in a directory: a Kobject, a Symlink or a DeviceNode.

    `number` is unique for the life of the mount.  `parent` is the directory, None for the root and for an
    entry that no directory lists.  `name_ns` is for how many nanoseconds the kernel may cache its name: None
    for as long as the lab file allows, 0 for a name that can go at any time.
    """

    __slots__ = ("ctime_ns", "name", "name_ns", "number", "parent")

    lane_bits: ClassVar[int] = 0
    member_mask: ClassVar[int] = (1 << MEMBER_BITS) - 1
    """Masks the member's number out of an inode number; a directory with more members takes the part's bits
    too."""
    stat_ns: ClassVar[int | None] = None
    """For how many nanoseconds the kernel may cache its stat: None for as long as the lab file allows."""
    members: ClassVar[tuple[Member, ...]] = ()
    """What the class declares."""
    numbering: ClassVar[Mapping[str, int]] = {}
    """The number of each member in an inode number, by its name."""
    numbered: ClassVar[Sequence[Numbered]] = ()
    """What the numbers stand for, from 1 on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.name_ns: int | None = None
        self.number = -1
        self.parent: Kobject | None = None
        self.ctime_ns = 0

    @property
    def holder(self) -> Entry:
        """The entry that has its number: itself, or the directory that an attribute group is in."""
        return self

    def seen_in(self, directory: Kobject) -> Entry:
        """The entry itself; a bundle makes its entry in `directory` now (vfsfuse.kernfs.bundle)."""
        return self

    @property
    def block(self) -> int:
        """Its number without the bits of the part."""
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

    def lookup(self, owner: Kobject) -> Lookup:
        """The answer to a lookup of it in the directory `owner`."""
        return Lookup(self.inode, self.stat(), self)


class Symlink(Entry):
    """A symlink that comes and goes, such as those in the directories of classes and buses."""

    __slots__ = ("target",)

    def __init__(self, name: str, target: Entry) -> None:
        super().__init__(name)
        self.target = target

    def stat(self) -> Stat:
        return SYMLINK


class DeviceNumber(NamedTuple):
    """The number of a character device, which `dev` shows as `major:minor`."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


class DeviceNode(Entry):
    """A file of which the device lane answers every open, by `opener`, and every ioctl, read and write.
    `device` is the name of the device whose regions the file has, empty for any other file.

    The file is a regular one.  `kind` and `rdev`, the number of a character device, say what it stands for:
    `vfsfuse run` shows that to its program."""

    __slots__ = ("device", "gid", "mode", "opener", "rdev", "size", "uid")

    lane_bits = DEVICE_BIT

    def __init__(
        self,
        name: str,
        mode: int,
        opener: Opener,
        size: int = 0,
        device: str = "",
        rdev: DeviceNumber | None = None,
    ) -> None:
        super().__init__(name)
        self.mode, self.opener, self.size, self.device, self.rdev = mode, opener, size, device, rdev
        self.uid: int | None = None
        self.gid: int | None = None

    def stat(self) -> Stat:
        return Stat(stat.S_IFREG | self.mode, self.size, 1, self.uid, self.gid)

    @property
    def kind(self) -> NodeKind:
        """What the file stands for on Linux."""
        return NodeKind.FILE if self.rdev is None else NodeKind.CHARACTER


class AnonymousNode(DeviceNode):
    """An unlisted file whose opens are given to clients as descriptors: on Linux no path leads to it."""

    __slots__ = ()

    @property
    def kind(self) -> NodeKind:
        return NodeKind.ANONYMOUS


class Member(ABC):
    """What a class of kobjects declares: a file, a symlink (kernfs/members.py) or a directory
    (kernfs/groups.py).

    A member `of_driver` comes and goes when a driver is bound to the device of the directory or unbound.
    `name_ns` is as that of an entry.  `doc` says what reading gives or where a link points, `store_doc` what
    writing does: docs/sysfs.md is made of them (tools/sysfs_table.py).
    """

    __slots__ = ("doc", "lane_bits", "name", "name_ns", "of_driver", "store_doc")

    directory: ClassVar[bool] = False
    """Whether it is a directory, which st_nlink of the directory above counts."""
    renewable: ClassVar[bool] = False
    """Whether it is of the model of the directory's device: a renewed device (`Tree.renew`) has another."""
    always: bool = False
    """Whether it is known to be present in every directory."""

    def __init__(
        self, name: str, lane_bits: int = 0, of_driver: bool = False, doc: str = "", store_doc: str = ""
    ) -> None:
        self.name, self.lane_bits, self.of_driver = name, lane_bits, of_driver
        self.name_ns = LINGER_NS if of_driver else None
        self.doc, self.store_doc = doc, store_doc

    def inode(self, owner: Kobject) -> int:
        return self.lane_bits | (owner.number << MEMBER_BITS | owner.numbering[self.name]) + 1

    def numbered(self, first: int) -> Iterable[Numbered]:
        """What the numbers from `first` on stand for: the member, and whatever is in it."""
        yield Numbered(None, self)

    def present(self, owner: Any) -> bool:
        """Whether it is in the directory `owner` now, as is_visible() of a kernel attribute group says."""
        return True

    @abstractmethod
    def stat(self, owner: Any) -> Stat:
        """What stat(2) shows of it in `owner`."""

    def lookup(self, owner: Kobject) -> Lookup:
        """The answer to a lookup of it in the directory `owner`."""
        return Lookup(self.inode(owner), self.stat(owner), owner)


class Numbered(NamedTuple):
    """What a member's number stands for: `member` of the directory, or of the attribute group `group` in it.
    Without a `member` it stands for the group itself."""

    group: Grouped | None
    member: Member | None


class Grouped(Protocol):
    """An attribute group, as numbers find it (kernfs.groups)."""

    def of(self, owner: Any) -> Kobject | None:
        """The group in the directory `owner`, None while it is not present."""


class Child(Protocol):
    """What a directory has under a name: an entry, or a bundle that makes one."""

    @property
    def block(self) -> int:
        """The number that those of its entries begin with."""

    def seen_in(self, directory: Kobject) -> Entry:
        """The entry of that name in `directory`."""


class Kobject(Entry):
    """A directory: the members that its class and the bases of its class declare, and its children.

    A member of a class replaces one of the same name of a base, as a method does.
    """

    __slots__ = ("children", "subdirs")

    devtmpfs: ClassVar[bool] = False
    """Whether device nodes come and go in it, of which watchers hear (vfsfuse.kernfs.watchers)."""
    node_size: ClassVar[int] = 0
    """st_size of those."""
    of_dev: ClassVar[bool] = False
    """Whether device nodes are in it.  A listing of it tells no types (d_type), so that programs ask stat(2),
    which `vfsfuse run --stat-paths` answers."""
    member_ns: ClassVar[int | None] = None
    """For how many nanoseconds at most the kernel may cache the name of a member, None without a limit."""

    by_name: ClassVar[dict[str, Member]] = {}
    _always_below: ClassVar[int] = 0
    _sometimes_below: ClassVar[tuple[Member, ...]] = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.children: dict[str, Child] | None = None
        self.subdirs = 0

    def __init_subclass__(cls) -> None:
        declared = [value for base in reversed(cls.__mro__) for value in vars(base).values()]
        cls.by_name = {member.name: member for member in declared if isinstance(member, Member)}
        cls.members = tuple(cls.by_name.values())
        below = [member for member in cls.members if member.directory]
        cls._sometimes_below = tuple(member for member in below if not member.always)
        cls._always_below = len(below) - len(cls._sometimes_below)
        cls.number_members()

    @classmethod
    def number_members(cls) -> None:
        """Number what the class declares."""
        numbering, numbered = {}, list[Numbered]()
        for member in cls.members:
            numbering[member.name] = len(numbered) + 1
            numbered.extend(member.numbered(len(numbered) + 1))
        if len(numbered) >= 1 << MEMBER_BITS:
            raise TypeError(f"{cls.__name__} declares too many members")
        cls.numbering = numbering
        if "numbered" not in vars(cls):
            cls.numbered = tuple(numbered)

    def stat(self) -> Stat:
        links = 2 + self.subdirs + self._always_below
        if self._sometimes_below:
            links += sum(member.present(self) for member in self._sometimes_below)
        return Stat(stat.S_IFDIR | 0o755, 0, links)

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
        """Inode number of a name that a lookup finds and no listing shows.  Raises OSError(ENOENT)."""
        raise OSError(errno.ENOENT, name)

    def entries(self) -> Iterator[Child | Member]:
        """What is in it now."""
        yield from (member for member in self.members if member.present(self))
        yield from (self.children or {}).values()


class UnlistedFiles(Kobject):
    """A directory with files that a lookup finds and no listing shows: `unlisted` has their inode numbers."""

    __slots__ = ("unlisted",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unlisted: dict[str, int] = {}

    def hidden(self, name: str) -> int:
        try:
            return self.unlisted[name]
        except KeyError:
            raise OSError(errno.ENOENT, name) from None


def relative(directory: Entry | None, target: Entry) -> str:
    """The path of `target` seen from `directory`, as sysfs writes its symlinks: up to the nearest directory
    that both are in, and down again.  So the last component is always the target's name, also where the
    target is above `directory`.  Source: fs/kernfs/symlink.c."""
    above: dict[int, int] = {}
    while directory is not None:
        above[directory.number] = len(above)
        directory = directory.parent
    names = [target.name]
    here = target.parent
    while here is not None and here.number not in above:
        names.append(here.name)
        here = here.parent
    if here is not None:
        names += [".."] * above[here.number]
    return "/".join(reversed(names))
