# SPDX-License-Identifier: Apache-2.0
"""The live tree: inode numbers to entries, and what the kernel must forget after a change.

Owner is the trio thread; `locate` may be called from the device lane (one dict look-up).  An inode number
is (entry number << MEMBER_BITS | member index) + 1 under the lane bits of native/lane.cdef, an entry number
(block << PART_BITS | part), and no block is used twice, so a stale one finds nothing.  A block is an entry's
or a device's (vfsfuse.kernfs.bundle).  The bits above those are `own_inode`'s.
"""

from __future__ import annotations

import errno
import itertools
import time
from dataclasses import dataclass, field
from typing import TypeVar

from devmodel.lifecycle.uevents import Uevents
from ioctl_shim.lane import ATTR_WRITE_BIT, DEVICE_BIT
from vfsfuse.kernfs.bundle import PART_MASK, Bundle
from vfsfuse.kernfs.entry import Lookup
from vfsfuse.kernfs.kobject import MEMBER_BITS, PART_BITS, Child, Entry, Kobject, Member

E = TypeVar("E", bound=Entry)
NUMBER_MASK = DEVICE_BIT - 1
BASE_MASK = (ATTR_WRITE_BIT << 1) - 1
"""An inode number without the bits that tell one lookup's from another's; `locate` takes either."""
MOST_LOOKUPS = 1 << 13
"""As many as there are bits left in an inode number."""
MEMBER_MASK = (1 << MEMBER_BITS) - 1
BLOCK_SHIFT = MEMBER_BITS + PART_BITS
MOST_MADE = 64
"""Directories of bundles that are kept because somebody looks around in them, until any bundle changes."""


@dataclass(slots=True)
class Changes:
    """What to tell the kernel: names that went (parent inode, name) and directories whose stat changed."""

    gone: list[tuple[int, bytes]] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)


@dataclass(slots=True)
class IAttrs:
    """What chmod(2) and chown(2) set on one inode; None means as declared."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Root(Kobject):
    """The root of a mount, with the uevents of its devices."""

    __slots__ = ("uevents",)

    def __init__(self) -> None:
        super().__init__("")
        self.uevents = Uevents()


class Tree:
    """All entries of one mount.  `root` is inode 1."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._lookups = itertools.count()
        self._blocks: dict[int, Entry | Bundle] = {}
        self._made: dict[int, Kobject] = {}
        self._changes = Changes()
        self.iattrs: dict[int, IAttrs] = {}
        self.root = Root()
        self.adopt(self.root)

    def add(self, parent: Kobject, child: E) -> E:
        """Put `child` into `parent` and return it.  Raises OSError(EEXIST)."""
        if parent.find(child.name) is not None:
            raise OSError(errno.EEXIST, f"{parent.path}/{child.name}")
        child.parent = parent
        self.adopt(child)
        self._enter(parent, child.name, child, isinstance(child, Kobject))
        return child

    def adopt(self, entry: Entry) -> None:
        """Give `entry` an inode number; on its own it makes an unlisted entry.  Any thread."""
        block = next(self._numbers)
        entry.number = block << PART_BITS
        entry.ctime_ns = time.time_ns()
        self._blocks[block] = entry

    def forget(self, entry: Entry) -> None:
        """Take an unlisted entry's number away.  Any thread."""
        self._blocks.pop(entry.block, None)

    def show(self, bundle: Bundle) -> None:
        """Let all of a device be seen.  Raises OSError(EEXIST), and then nothing of it is."""
        bundle.block = next(self._numbers)
        places = list(bundle.places())
        for _, directory, name in places:
            if self._keeps(directory) and directory.find(name) is not None:
                raise OSError(errno.EEXIST, f"{directory.path}/{name}")
        self._blocks[bundle.block] = bundle
        once: dict[str, str] = {}  # directories share one string
        for part, directory, name in places:
            self._enter(directory, once.setdefault(name, name), bundle, part.directory)
        self._made.clear()

    def withdraw(self, bundle: Bundle) -> None:
        """The opposite of `show`: last what appeared first."""
        if not self.knows(bundle):
            return
        places = list(bundle.places())
        self._drop_block(bundle.block)
        for part, directory, name in reversed(places):
            self._leave(directory, name, part.directory)
        self._made.clear()

    def make(self, path: str) -> Kobject:
        """The directory at `path`, made with its parents where missing."""
        here: Kobject = self.root
        for name in filter(None, path.split("/")):
            child = here.find(name)
            here = _directory(child if child is not None else self.add(here, Kobject(name)))
        return here

    def remove(self, entry: Entry) -> None:
        """Take `entry` and everything below it out of the tree; symlinks elsewhere are their owners' to
        remove."""
        parent = entry.parent
        if parent is None or not parent.children or parent.children.get(entry.name) is not entry:
            return
        self._disown(entry)
        self._leave(parent, entry.name, isinstance(entry, Kobject))

    def hide(self, owner: Kobject, name: str) -> None:
        """A member's presence may have changed: let the kernel ask again."""
        self._changes.gone.append((owner.inode, name.encode()))

    def take_changes(self) -> Changes:
        """The changes since the last call; the caller tells the kernel."""
        changes, self._changes = self._changes, Changes()
        return changes

    def locate(self, inode: int) -> tuple[Entry, Member | None]:
        """The entry, and its member, that `inode` names.  Raises OSError when it is gone: ENODEV for a file,
        ENOENT for a directory or a symlink."""
        index = (inode & NUMBER_MASK) - 1
        gone = errno.ENODEV if inode > NUMBER_MASK else errno.ENOENT
        found = self._blocks.get(index >> BLOCK_SHIFT)
        if found is None:
            raise OSError(gone, "removed")
        if isinstance(found, Bundle):
            found = self._made.get(index >> MEMBER_BITS) or _part(
                found, index >> MEMBER_BITS & PART_MASK, gone
            )
        member = index & MEMBER_MASK
        if not member:
            return found, None
        members = found.members
        if member > len(members) or not members[member - 1].present(found):
            raise OSError(gone, "removed")
        return found, members[member - 1]

    def knows(self, child: Child) -> bool:
        """Whether what was found in a directory is still there."""
        return child.block in self._blocks

    def own_inode(self, inode: int) -> int:
        """A number of its own for each lookup.  The kernel locks an inode for as long as a write to it takes,
        and who waits for that lock cannot be interrupted: a store that waits must not keep others from
        theirs."""
        return inode | (next(self._lookups) % MOST_LOOKUPS) * (BASE_MASK + 1)

    def directory(self, inode: int) -> Kobject:
        """The directory `inode` names.  Raises OSError(ENOENT) when it is gone, ENOTDIR when it is none."""
        try:
            entry, member = self.locate(inode)
        except OSError:
            raise OSError(errno.ENOENT, "removed") from None
        if member is not None:
            raise OSError(errno.ENOTDIR, member.name)
        found = _directory(entry)
        if not self._keeps(found):
            if len(self._made) >= MOST_MADE:
                self._made.clear()
            self._made[found.number] = found
        return found

    def look(self, inode: int) -> Lookup:
        """What `inode` stands for.  Raises OSError as `locate`."""
        entry, member = self.locate(inode)
        return Lookup(inode, entry.stat() if member is None else member.stat(entry), entry)

    def _enter(self, directory: Kobject, name: str, child: Child, is_directory: bool) -> None:
        if self._keeps(directory):
            if directory.children is None:
                directory.children = {}
            directory.children[name] = child
            directory.subdirs += is_directory
        if is_directory:
            self._changes.touched.add(directory.inode)

    def _leave(self, directory: Kobject, name: str, is_directory: bool) -> None:
        if self._keeps(directory):
            if directory.children is not None:
                directory.children.pop(name, None)
            directory.subdirs -= is_directory
        self._changes.gone.append((directory.inode, name.encode()))
        if is_directory:
            self._changes.touched.add(directory.inode)

    def _keeps(self, directory: Kobject) -> bool:
        """Whether names can be put into it: an entry of a bundle is made with those that it has."""
        return self._blocks.get(directory.block) is directory

    def _disown(self, entry: Entry) -> None:
        self._drop_block(entry.block)
        for child in list((entry.children or {}).values()) if isinstance(entry, Kobject) else ():
            if isinstance(child, Entry):
                self._disown(child)

    def _drop_block(self, block: int) -> None:
        self._blocks.pop(block, None)
        if self.iattrs:
            self.iattrs = {
                inode: value
                for inode, value in self.iattrs.items()
                if ((inode & NUMBER_MASK) - 1) >> BLOCK_SHIFT != block
            }


def _part(bundle: Bundle, index: int, gone: int) -> Entry:
    """A part of a device that may be going meanwhile."""
    try:
        return bundle.entry(index)
    except LookupError as error:
        raise OSError(gone, "removed") from error


def _directory(entry: Entry | Member) -> Kobject:
    if not isinstance(entry, Kobject):
        raise OSError(errno.ENOTDIR, entry.name)
    return entry
