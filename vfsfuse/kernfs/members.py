# SPDX-License-Identifier: Apache-2.0
"""What a kobject's class declares: attributes that show and store text, links, and binary attributes.

This module formats and limits them and turns exceptions into errnos as fs/sysfs and fs/kernfs do
(Documentation/filesystems/sysfs.rst).  Everything here runs on the trio thread, but for show(), which the
device lane calls too, the opening of binary attributes, which is the device lane's, and the making of
snapshots, which is a worker thread's.
"""

from __future__ import annotations

import errno
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ioctl_shim.lane import ATTR_BIT, ATTR_READ_BIT, ATTR_WRITE_BIT, DEVICE_BIT, Opened, OpenRequest
from vfsfuse.kernfs.entry import MEMBER_BITS, Entry, Lookup, Stat, relative

if TYPE_CHECKING:
    from vfsfuse.kernfs.kobject import Kobject

PAGE_SIZE = 4096
S = TypeVar("S")


class Member(ABC):
    """A file or link that Kobject classes declare."""

    __slots__ = ("lane_bits", "name")

    def __init__(self, name: str, lane_bits: int = 0) -> None:
        self.name, self.lane_bits = name, lane_bits

    def inode(self, owner: Kobject) -> int:
        return self.lane_bits | (owner.number << MEMBER_BITS | owner.numbering[self.name]) + 1

    def present(self, owner: Any) -> bool:
        """As a kernel attribute group's is_visible()."""
        return True

    @abstractmethod
    def stat(self, owner: Any) -> Stat:
        """What stat(2) shows of it in `owner`."""

    def look(self, owner: Kobject) -> Lookup:
        """As Entry's."""
        return Lookup(self.inode(owner), self.stat(owner), owner)


class Attribute(Member):
    """A text attribute.  `show` returns a value (a final newline is added); `store` takes the text
    written.

    A `prompt` one is shown on the device lane too, under Lab.lock, so it neither waits nor takes time."""

    __slots__ = ("_show", "_store", "mode", "prompt", "visible")

    def __init__(self, name: str, mode: int) -> None:
        readable = ATTR_READ_BIT if mode & 0o444 else 0
        super().__init__(name, ATTR_BIT | readable | (ATTR_WRITE_BIT if mode & 0o222 else 0))
        self.mode, self.prompt = mode, True
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


class SnapshotMember(Member):
    """A read-only file whose content is made when it is opened: who opened it reads what was then, and who
    opens it later what is later.

    `content` is called in a worker thread, so it may take its time, and raises OSError as open(2) does.
    """

    __slots__ = ("_content", "_when")

    def __init__(self, name: str, content: Callable[[Any], bytes], when: Callable[[Any], bool]) -> None:
        super().__init__(name)
        self._content, self._when = content, when

    def present(self, owner: Any) -> bool:
        return self._when(owner)

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | 0o444, 0)

    def content(self, owner: Any) -> bytes:
        """Any thread."""
        return self._content(owner)
