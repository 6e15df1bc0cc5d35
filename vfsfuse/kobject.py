# SPDX-License-Identifier: Apache-2.0
"""The sysfs contract, in one place: kobjects are directories, attributes are files that show and store text.

A class declares attributes and links; this module numbers them, formats them, limits them and turns
exceptions into errnos as fs/sysfs and fs/kernfs do (Documentation/filesystems/sysfs.rst).  Entries belong
to the trio thread; the device lane only looks an entry up by inode number and opens it.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ioctl_shim.lane import ATTR_BIT, ATTR_READ_BIT, ATTR_WRITE_BIT, DEVICE_BIT, Opened, OpenRequest

PAGE_SIZE = 4096
MEMBER_BITS = 8
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Stat:
    """What stat(2) shows of an entry: st_mode with its type, st_size, st_nlink, and owners that are not the
    mount's (None)."""

    mode: int
    size: int
    nlink: int = 1
    uid: int | None = None
    gid: int | None = None


class Entry:
    """A name in a directory: a Kobject, a Symlink or a DeviceNode.  `number` is unique for the mount's
    life."""

    __slots__ = ("ctime_ns", "name", "number", "parent")

    lane_bits: ClassVar[int] = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = -1
        self.parent: Kobject | None = None
        self.ctime_ns = time.time_ns()

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

    def stat(self) -> Stat:
        raise NotImplementedError


class Member:
    """A file or link that Kobject classes declare."""

    __slots__ = ("lane_bits", "name")

    def __init__(self, name: str, lane_bits: int = 0) -> None:
        self.name, self.lane_bits = name, lane_bits

    def inode(self, owner: Kobject) -> int:
        return self.lane_bits | (owner.number << MEMBER_BITS | owner.numbering[self.name]) + 1

    def present(self, owner: Any) -> bool:
        """As a kernel attribute group's is_visible()."""
        return True

    def stat(self, owner: Any) -> Stat:
        raise NotImplementedError


class Attribute(Member):
    """A text attribute.  `show` returns a value (a final newline is added); `store` takes the text
    written."""

    __slots__ = ("_show", "_store", "mode", "visible")

    def __init__(self, name: str, mode: int) -> None:
        readable = ATTR_READ_BIT if mode & 0o444 else 0
        super().__init__(name, ATTR_BIT | readable | (ATTR_WRITE_BIT if mode & 0o222 else 0))
        self.mode = mode
        self._show: Callable[[Any], object] | None = None
        self._store: Callable[[Any, str], object] | None = None
        self.visible: Callable[[Any], bool] | None = None

    def store(self, function: Callable[[S, str], object]) -> Attribute:
        """Decorator: declare the store() of an attribute that has a show()."""
        self._store = function
        return self

    def present(self, owner: Any) -> bool:
        return self.visible is None or self.visible(owner)

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | self.mode, PAGE_SIZE)

    def read(self, owner: Any) -> bytes:
        """The whole text.  Raises OSError(EIO) when the attribute has no show()."""
        if self._show is None:
            raise OSError(errno.EIO, f"{self.name} is write-only")
        text = str(self._show(owner))
        if text and not text.endswith("\n"):
            text += "\n"
        return text.encode()[:PAGE_SIZE]

    def write(self, owner: Any, data: bytes) -> int:
        """Store at most a page, all or nothing; returns the bytes taken.  ValueError becomes EINVAL."""
        if self._store is None:
            raise OSError(errno.EIO, f"{self.name} is read-only")
        taken = data[:PAGE_SIZE]
        try:
            self._store(owner, value_of(taken))
        except ValueError as error:
            raise OSError(errno.EINVAL, f"{self.name}: {error}") from error
        return len(taken)


def value_of(written: bytes) -> str:
    """The text of a write(2), without the newline that echo(1) adds.  Raises ValueError when it is not
    ASCII or there are more newlines at its end."""
    text = written.decode("ascii").rstrip("\0").removesuffix("\n")
    if text.endswith("\n"):
        raise ValueError(f"{text!r} ends in empty lines")
    return text


def attribute(
    mode: int = 0o444, name: str | None = None, when: Callable[[Any], bool] | None = None
) -> Callable[[Callable[[S], object]], Attribute]:
    """Decorator: declare a readable attribute from its show(); it is there only `when` says so."""

    def declare(show: Callable[[S], object]) -> Attribute:
        made = Attribute(name or show.__name__, mode)
        made._show, made.visible = show, when
        return made

    return declare


def store_only(
    name: str | None = None, when: Callable[[Any], bool] | None = None
) -> Callable[[Callable[[S, str], object]], Attribute]:
    """Decorator: declare a write-only attribute (mode 0200) from its store()."""

    def declare(store: Callable[[S, str], object]) -> Attribute:
        made = Attribute(name or store.__name__, 0o200)
        made._store, made.visible = store, when
        return made

    return declare


class LinkMember(Member):
    """A symlink a class declares: `target` gives the entry it points at, or None when there is none now."""

    __slots__ = ("_target",)

    def __init__(self, name: str, target: Callable[[Any], Entry | None]) -> None:
        super().__init__(name)
        self._target = target

    def target(self, owner: Any) -> Entry:
        found = self._target(owner)
        if found is None:
            raise OSError(errno.ENOENT, self.name)
        return found

    def present(self, owner: Any) -> bool:
        return self._target(owner) is not None

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFLNK | 0o777, len(relative(owner, self.target(owner))))


def link(name: str | None = None) -> Callable[[Callable[[S], Entry | None]], LinkMember]:
    """Decorator: declare a symlink from a function that returns its target."""
    return lambda target: LinkMember(name or target.__name__, target)


class BinaryMember(Member):
    """A binary attribute (config, resource<N>): opened, read and written on the device lane."""

    __slots__ = ("_open", "_size", "mode")

    def __init__(
        self,
        name: str,
        mode: int,
        size: Callable[[Any], int | None],
        opener: Callable[[Any, OpenRequest], Opened],
    ) -> None:
        super().__init__(name, DEVICE_BIT)
        self.mode, self._size, self._open = mode, size, opener

    def present(self, owner: Any) -> bool:
        return self._size(owner) is not None

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | self.mode, self._size(owner) or 0)

    def open(self, owner: Any, request: OpenRequest) -> Opened:
        """Device lane.  Raises OSError as open(2) does."""
        return self._open(owner, request)


class Kobject(Entry):
    """A directory: the members its class declares, and children that come and go.

    A class declares members as class attributes (through the decorators above) and in a tuple `declared`, for
    those that several classes share.
    """

    __slots__ = ("children", "subdirs")

    declared: ClassVar[tuple[Member, ...]] = ()
    members: ClassVar[tuple[Member, ...]] = ()
    by_name: ClassVar[dict[str, Member]] = {}
    numbering: ClassVar[dict[str, int]] = {}

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.children: dict[str, Entry] | None = None
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

    def find(self, name: str) -> Entry | Member | None:
        """The child or present member called `name`."""
        if self.children and name in self.children:
            return self.children[name]
        member = self.by_name.get(name)
        return member if member is not None and member.present(self) else None

    def hidden(self, name: str) -> int:
        """Inode of a name that can be looked up but is not listed.  Raises OSError(ENOENT)."""
        raise OSError(errno.ENOENT, name)

    def entries(self) -> Iterator[Entry | Member]:
        yield from (member for member in self.members if member.present(self))
        yield from (self.children or {}).values()


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
    here = directory.path.split("/") if directory is not None and directory.path else []
    there = target.path.split("/")
    common = 0
    while common < min(len(here), len(there)) and here[common] == there[common]:
        common += 1
    return "/".join([".."] * (len(here) - common) + there[common:])
