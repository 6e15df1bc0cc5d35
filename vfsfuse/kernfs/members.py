# SPDX-License-Identifier: Apache-2.0
"""Members: the attributes, links and other files that a class of kobjects declares.

A class declares a member in one way: as a class attribute, by a decorator on the method that shows it, points
at its target or opens it.

    class TypeDir(Kobject):
        @attribute(0o644)
        def weight(self) -> int:
            return self.type.weight

        @weight.store
        def _store_weight(self, text: str) -> None:
            self.type.weight = parse_number(text)

    decorator         the method                                       in stat(2)
    @attribute        show(): the value, str() of which is the text    a file, mode 0444 unless given
    @<name>.store     store(text) of the attribute <name>
    @store_only       store(text)                                      a file, mode 0200
    @waiting_store    store(text), a coroutine                         a file, mode 0200 unless given
    @waiting          show(), of a file whose store() is a coroutine   a file, mode 0644 unless given
    @link             the entry that it points at, or None             a symlink
    @binary           open(request), on the device lane                a file of a size
    @snapshot         the content, made when the file is opened        a file, mode 0444

The docstring of the method says what reading gives, that of a store() what writing does.  The docstring of an
open() says the one in its first paragraph and the other in its second.  docs/sysfs.md is made of them.

A generated member is an `Attribute` or a `BinaryMember` that is made by its constructor and assigned in the
same place (vfsfuse/sysfs/pci.py, vfsfuse/sysfs/model.py).  Members that several classes share are in a base
class of theirs, which is what the kernel calls an attribute group.  `when` says in which directories a member
is present; `of_driver` says that it comes and goes with the driver of the directory's device, so that the
kernel is told.

This module formats and limits what is shown and stored, and turns exceptions into errnos, as fs/sysfs and
fs/kernfs do (Documentation/filesystems/sysfs.rst).  Everything here runs on the trio thread, with three
exceptions: the device lane calls show() as well, the device lane opens binary attributes, and a worker thread
makes snapshots.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ioctl_shim.lane import ATTR_BIT, ATTR_READ_BIT, ATTR_WRITE_BIT, DEVICE_BIT, Opened, OpenRequest
from vfsfuse.kernfs.kobject import SYMLINK, Entry, Member, Stat

PAGE_SIZE = 4096
S = TypeVar("S")
When = Callable[[Any], bool]


def docstring(function: object) -> str:
    """The docstring of a method, in one line; empty without one, and for None, which has one of its own."""
    return "" if function is None else " ".join((function.__doc__ or "").split())


def value_of(written: bytes) -> str:
    """The text of a write(2), without the newline that echo(1) adds.  Raises ValueError when it is not
    ASCII or there are more newlines at its end."""
    text = written.decode("ascii").rstrip("\0").removesuffix("\n")
    if text.endswith("\n"):
        raise ValueError(f"{text!r} ends in empty lines")
    return text


def _text(name: str, show: Callable[[Any], object] | None, owner: Any) -> bytes:
    """What a read of an attribute gives: its value as a line, at most a page."""
    if show is None:
        raise OSError(errno.EIO, f"{name} is write-only")
    text = str(show(owner))
    if text and not text.endswith("\n"):
        text += "\n"
    return text.encode()[:PAGE_SIZE]


# ---- attributes.  To add an attribute: CONTRIBUTING.md, "Adding an attribute" ----


class Attribute(Member):
    """A text attribute.  `show` returns a value, whose text gets a final newline; `store` takes the text that
    was written.  Without a `when` it is always present.

    The device lane shows a `prompt` attribute too, under Lab.lock, so its show() neither waits nor takes
    long."""

    __slots__ = ("_show", "_store", "_when", "mode", "prompt")

    def __init__(
        self,
        name: str,
        mode: int,
        show: Callable[[Any], object] | None = None,
        store: Callable[[Any, str], object] | None = None,
        when: When | None = None,
        *,
        of_driver: bool = False,
        prompt: bool = True,
        doc: str = "",
        store_doc: str = "",
    ) -> None:
        readable = ATTR_READ_BIT if mode & 0o444 else 0
        lane_bits = ATTR_BIT | readable | (ATTR_WRITE_BIT if mode & 0o222 else 0)
        super().__init__(name, lane_bits, of_driver, doc or docstring(show), store_doc or docstring(store))
        self.mode, self.prompt = mode, prompt
        self._show, self._store, self._when = show, store, when

    def store(self, function: Callable[[S, str], object]) -> Attribute:
        """Decorator: declare the store() of an attribute that has a show()."""
        self._store, self.store_doc = function, docstring(function)
        return self

    def present(self, owner: Any) -> bool:
        return self._when is None or self._when(owner)

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | self.mode, PAGE_SIZE)

    def read(self, owner: Any) -> bytes:
        """The whole text, at most a page.  Raises OSError(EIO) when the attribute has no show()."""
        return _text(self.name, self._show, owner)

    def write(self, owner: Any, data: bytes) -> int:
        """Store at most a page, all or nothing; returns the number of bytes taken.

        Raises OSError: EIO when the attribute has no store(), EINVAL for a ValueError of it.
        """
        if self._store is None:
            raise OSError(errno.EIO, f"{self.name} is read-only")
        taken = data[:PAGE_SIZE]
        try:
            self._store(owner, value_of(taken))
        except ValueError as error:
            raise OSError(errno.EINVAL, f"{self.name}: {error}") from error
        return len(taken)


def attribute(
    mode: int = 0o444,
    name: str | None = None,
    when: When | None = None,
    *,
    optional: bool = False,
    of_driver: bool = False,
) -> Callable[[Callable[[S], object]], Attribute]:
    """Decorator: declare a readable attribute from its show().

    An `optional` one is present while its value is neither 0 nor None nor empty; then there is no `when`.
    """
    if optional and when is not None:
        raise TypeError("an attribute is optional, or has a condition of its own")

    def declare(show: Callable[[S], object]) -> Attribute:
        there = (lambda owner: bool(show(owner))) if optional else when
        return Attribute(name or show.__name__, mode, show, when=there, of_driver=of_driver)

    return declare


def store_only(
    name: str | None = None, when: When | None = None, *, of_driver: bool = False
) -> Callable[[Callable[[S, str], object]], Attribute]:
    """Decorator: declare a write-only attribute (mode 0200) from its store()."""

    def declare(store: Callable[[S, str], object]) -> Attribute:
        return Attribute(name or store.__name__, 0o200, store=store, when=when, of_driver=of_driver)

    return declare


class WaitingStore(Member):
    """An attribute whose store() is a coroutine that may wait (vfsfuse.kernfs.waiting). It can be read if it
    has a show(). A store() that is cancelled has changed nothing."""

    __slots__ = ("_show", "_store", "_when", "mode")

    def __init__(
        self,
        name: str,
        mode: int,
        show: Callable[[Any], object] | None = None,
        store: Callable[[Any, str], Awaitable[None]] | None = None,
        when: When | None = None,
        *,
        of_driver: bool = False,
    ) -> None:
        super().__init__(name, DEVICE_BIT, of_driver, docstring(show), docstring(store))
        self.mode = mode
        self._show, self._store, self._when = show, store, when

    def store(self, function: Callable[[S, str], Awaitable[None]]) -> WaitingStore:
        """Decorator: declare the store() of one that has a show()."""
        self._store, self.store_doc = function, docstring(function)
        return self

    @property
    def readable(self) -> bool:
        """Whether it has a show()."""
        return self._show is not None

    def present(self, owner: Any) -> bool:
        return self._when is None or self._when(owner)

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | self.mode, PAGE_SIZE)

    def read(self, owner: Any) -> bytes:
        """The whole text, at most a page.  Raises OSError(EIO) when it has no show()."""
        return _text(self.name, self._show, owner)

    async def write(self, owner: Any, data: bytes) -> None:
        """Trio thread.  Raises OSError: EIO when it has no store(), EINVAL for a text that does not parse."""
        if self._store is None:
            raise OSError(errno.EIO, f"{self.name} is read-only")
        try:
            await self._store(owner, value_of(data))
        except ValueError as error:
            raise OSError(errno.EINVAL, f"{self.name}: {error}") from error


def waiting(mode: int = 0o644) -> Callable[[Callable[[S], object]], WaitingStore]:
    """Decorator: declare a readable attribute from its show(), whose store() is a coroutine."""
    return lambda show: WaitingStore(show.__name__, mode, show)


def waiting_store(
    name: str | None = None, when: When | None = None, *, mode: int = 0o200, of_driver: bool = False
) -> Callable[[Callable[[S, str], Awaitable[None]]], WaitingStore]:
    """Decorator: declare a write-only attribute from its store(), a coroutine."""

    def declare(store: Callable[[S, str], Awaitable[None]]) -> WaitingStore:
        named = name or str(getattr(store, "__name__", ""))
        return WaitingStore(named, mode, store=store, when=when, of_driver=of_driver)

    return declare


# ---- links, binary attributes and snapshots ----


class LinkMember(Member):
    """A symlink.  `target` gives the entry that it points at; while that is None, the link is not present."""

    __slots__ = ("_target",)

    def __init__(self, name: str, target: Callable[[Any], Entry | None], *, of_driver: bool = False) -> None:
        super().__init__(name, 0, of_driver, docstring(target))
        self._target = target

    def target(self, owner: Any) -> Entry:
        """Raises OSError(ENOENT) when there is none now."""
        found = self._target(owner)
        if found is None:
            raise OSError(errno.ENOENT, self.name)
        return found

    def present(self, owner: Any) -> bool:
        return self._target(owner) is not None

    def stat(self, owner: Any) -> Stat:
        self.target(owner)
        return SYMLINK


def link(
    name: str | None = None, *, of_driver: bool = False
) -> Callable[[Callable[[S], Entry | None]], LinkMember]:
    """Decorator: declare a symlink from a function that returns its target."""
    return lambda target: LinkMember(name or target.__name__, target, of_driver=of_driver)


class BinaryMember(Member):
    """A binary attribute (config, resource<N>): the device lane opens, reads and writes it.

    `size` gives the size in bytes; while that is None, the attribute is not present.
    """

    __slots__ = ("_open", "_size", "mode")

    renewable = True

    def __init__(
        self,
        name: str,
        mode: int,
        size: Callable[[Any], int | None],
        opener: Callable[[Any, OpenRequest], Opened],
        doc: str = "",
    ) -> None:
        reading, _, writing = (doc or opener.__doc__ or "").partition("\n\n")
        super().__init__(name, DEVICE_BIT, doc=" ".join(reading.split()), store_doc=" ".join(writing.split()))
        self.mode, self._size, self._open = mode, size, opener

    def present(self, owner: Any) -> bool:
        return self._size(owner) is not None

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | self.mode, self._size(owner) or 0)

    def open(self, owner: Any, request: OpenRequest) -> Opened:
        """Device lane.  Raises OSError as open(2) does."""
        return self._open(owner, request)


def binary(
    mode: int, size: Callable[[Any], int | None]
) -> Callable[[Callable[[S, OpenRequest], Opened]], BinaryMember]:
    """Decorator: declare a binary attribute from the function that opens it."""
    return lambda opener: BinaryMember(opener.__name__, mode, size, opener)


class SnapshotMember(Member):
    """A read-only file whose content is made when it is opened: every open has a content of its own.

    A worker thread calls `content`, so it may take its time.  It raises OSError as open(2) does.
    """

    __slots__ = ("_content", "_when")

    def __init__(self, name: str, content: Callable[[Any], bytes], when: When) -> None:
        super().__init__(name, doc=docstring(content))
        self._content, self._when = content, when

    def present(self, owner: Any) -> bool:
        return self._when(owner)

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | 0o444, 0)

    def content(self, owner: Any) -> bytes:
        """Any thread."""
        return self._content(owner)


def snapshot(name: str, when: When) -> Callable[[Callable[[S], bytes]], SnapshotMember]:
    """Decorator: declare a snapshot from the function that makes its content."""
    return lambda content: SnapshotMember(name, content, when)
