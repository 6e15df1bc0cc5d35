# SPDX-License-Identifier: Apache-2.0
"""The tree of a mount: the entry of each inode number, and what the kernel must forget after a change.

Owner is the trio thread; the device lane may call `locate`, which is one dictionary look-up.

    inode number    (entry number << MEMBER_BITS | member's number) + 1, below the lane bits of
                    native/lane.cdef; the bits above those belong to `own_inode`, and to `renew`
    entry number    block << PART_BITS | part
    block           the number of an entry, or of a device's bundle (vfsfuse.kernfs.bundle)

No block is used twice, so a stale inode number finds nothing.
"""

from __future__ import annotations

import errno
import itertools
import time
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from ioctl_shim.lane import ATTR_WRITE_BIT, DEVICE_BIT
from vfsfuse.kernfs.bundle import PART_MASK, Bundle, Part
from vfsfuse.kernfs.gone import Gone, files_of
from vfsfuse.kernfs.kobject import (
    MEMBER_BITS,
    PART_BITS,
    Child,
    Entry,
    Kobject,
    Lookup,
    Member,
    UnlistedFiles,
)
from vfsfuse.kernfs.root import Root

E = TypeVar("E", bound=Entry)
NUMBER_MASK = DEVICE_BIT - 1
BASE_MASK = (ATTR_WRITE_BIT << 1) - 1
"""Masks the bits of `own_inode` out of an inode number; `locate` takes a number with or without them."""
MOST_LOOKUPS = 1 << 13
"""Numbers that `own_inode` gives in turn: 13 bits are left in an inode number."""
BLOCK_SHIFT = MEMBER_BITS + PART_BITS
MOST_MADE = 64
"""Directories of bundles that are kept while a client looks around in them, until any bundle changes."""


class NameChange(NamedTuple):
    """A name of a device node or a directory that came, or went, in `directory`; `number` is the entry's."""

    directory: Kobject
    name: str
    came: bool
    number: int

    @property
    def inode(self) -> int:
        """The inode number of the node, or of the directory."""
        return (DEVICE_BIT if self.directory.devtmpfs else 0) | (self.number << MEMBER_BITS) + 1


@dataclass(slots=True)
class Changes:
    """What the kernel may still know: directories whose stat changed, and whether names are gone that it may
    have cached (`LINGER_NS`).  `names` is for those who watch them (vfsfuse.kernfs.watchers)."""

    lingers: bool = False
    touched: set[int] = field(default_factory=set)
    names: list[NameChange] = field(default_factory=list)


@dataclass(slots=True)
class IAttrs:
    """What chmod(2), chown(2) and setxattr(2) set on one inode; None means as declared."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    """Extended attributes by their whole name, such as trusted.libvirt.security.dac."""


def block_of(inode: int) -> int:
    """The block of an inode number: that of an entry, or of a device's bundle.  Any thread."""
    return (inode & NUMBER_MASK) - 1 >> BLOCK_SHIFT


class _Renewed(OSError):
    """A file of a device that is another one now."""


class Tree:
    """All entries of one mount.  `root` is inode 1."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._lookups = itertools.count()
        self._blocks: dict[int, Entry | Bundle] = {}
        self._made: dict[int, Kobject] = {}
        self._changes = Changes()
        self.gone = Gone()
        self.iattrs: dict[int, IAttrs] = {}
        self.renewed: dict[int, int] = {}
        """Bits of the inode numbers of a renewed device's files, by the number of its directory."""
        self.root = Root()
        self.adopt(self.root)

    def add(self, parent: Kobject, child: E) -> E:
        """Put `child` into `parent` and return it.  Raises OSError(EEXIST) when the name is taken."""
        if parent.find(child.name) is not None:
            raise OSError(errno.EEXIST, f"{parent.path}/{child.name}")
        child.parent = parent
        self.adopt(child)
        self._enter(parent, child.name, child, isinstance(child, Kobject))
        return child

    def adopt(self, entry: Entry) -> None:
        """Give `entry` an inode number.  Without `add`, it becomes an unlisted entry.  Any thread."""
        block = next(self._numbers)
        entry.number = block << PART_BITS
        entry.ctime_ns = time.time_ns()
        self._blocks[block] = entry

    def add_unlisted(self, parent: UnlistedFiles, entry: Entry) -> None:
        """Put `entry` into `parent`, for as long as the mount is there, as a file that no listing shows."""
        entry.parent = parent
        self.adopt(entry)
        parent.unlisted[entry.name] = entry.inode

    def forget(self, entry: Entry) -> None:
        """Take an unlisted entry's number away.  Any thread."""
        self._blocks.pop(entry.block, None)

    def show(self, bundle: Bundle) -> None:
        """Show all entries of a device.  Raises OSError(EEXIST) for a taken name, and shows none of them."""
        bundle.block = next(self._numbers)
        places = list(bundle.places())
        for _, directory, name in places:
            if self._keeps(directory) and directory.find(name) is not None:
                raise OSError(errno.EEXIST, f"{directory.path}/{name}")
        self._blocks[bundle.block] = bundle
        block = bundle.block << PART_BITS
        once: dict[str, str] = {}  # directories share one string
        for index, (part, directory, name) in enumerate(places):
            self._enter(directory, once.setdefault(name, name), bundle, part.directory)
            if directory.devtmpfs:
                self._changes.names.append(NameChange(directory, name, True, block | index))
        self._made.clear()

    def withdraw(self, bundle: Bundle) -> None:
        """Remove all entries of a device: those that appeared last go first."""
        if not self.knows(bundle):
            return
        places = list(bundle.places())
        for index, part in enumerate(bundle.plan.parts):
            if part.directory:
                number = bundle.block << PART_BITS | index
                self.gone.add(bundle.block, (number << MEMBER_BITS) + 1, bundle.ctime_ns)
                if bundle.told:
                    self._forget_files(bundle.kobject_of(part))
        self._changes.lingers |= bundle.lingers
        block, names = bundle.block << PART_BITS, self._changes.names
        for index, (part, directory, name) in enumerate(places):
            if directory.devtmpfs or (part.directory and not isinstance(part.where, Part)):
                names.append(NameChange(directory, name, False, block | index))
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

    def renumber(self, bundle: Bundle) -> None:
        """Give the entries of a bundle without directories other inode numbers.  A file that is open keeps
        the old one, which stands for nothing any more."""
        old, bundle.block = bundle.block, next(self._numbers)
        moved = (bundle.block - old) << BLOCK_SHIFT
        ours = {inode for inode in self.iattrs if block_of(inode) == old}
        kept = {inode + moved: self.iattrs[inode] for inode in ours}
        self._blocks[bundle.block] = bundle
        self._changes.lingers |= bundle.lingers
        self._drop_block(old)
        self.iattrs.update(kept)
        self._made.clear()

    def renew(self, directory: Kobject) -> None:
        """The device of a directory is another one: the files of its model have other inode numbers from now
        on, and may be others.  A file that is open keeps the old number, which stands for nothing any more.

        The kernel keeps names in the directory for `LINGER_NS` at most (`Kobject.member_ns`)."""
        self.renewed[directory.number] = self.own_inode(0)
        self._changes.touched.add(directory.inode)
        self._changes.touched.update(inode for inode, _ in files_of(directory))
        self._changes.lingers = True
        self._made.clear()

    def remove(self, entry: Entry) -> None:
        """Take `entry` and everything below it out of the tree.  Symlinks to them stay: whoever added those
        removes them.  The `name_ns` of an entry that is to be removed is `LINGER_NS` at most."""
        parent = entry.parent
        if parent is None or not parent.children or parent.children.get(entry.name) is not entry:
            return
        if isinstance(entry, Kobject):
            self._changes.names.append(NameChange(parent, entry.name, False, entry.number))
        self._disown(entry)
        self._changes.lingers = True
        self._leave(parent, entry.name, isinstance(entry, Kobject))

    def drop(self, directory: Kobject) -> None:
        """Take an unlisted directory out of the tree, and everything below it."""
        if directory.parent is not None:
            change = NameChange(directory.parent, directory.name, False, directory.number)
            self._changes.names.append(change)
        self._disown(directory)
        self._changes.lingers = True

    def tell(self, directory: Kobject) -> None:
        """The kernel is told names that are in `directory`, which it may cache."""
        found = self._blocks.get(directory.block)
        if isinstance(found, Bundle):
            found.told = True

    def driver_left(self, directory: Kobject) -> None:
        """The driver of the directory's device is gone, and members with it."""
        self._changes.lingers |= any(member.of_driver for member in directory.members)

    def take_changes(self) -> Changes:
        """The changes since the last call; the caller tells the kernel."""
        changes, self._changes = self._changes, Changes()
        return changes

    def locate(self, inode: int) -> tuple[Entry, Member | None]:
        """The entry or attribute group that `inode` stands for, and the member of it, if it stands for one.
        Raises OSError when it is gone: ENODEV for a file, ENOENT for a directory or a symlink."""
        index = (inode & NUMBER_MASK) - 1
        gone = errno.ENODEV if inode > NUMBER_MASK else errno.ENOENT
        found = self._blocks.get(index >> BLOCK_SHIFT)
        if found is None:
            raise OSError(gone, "removed")
        if isinstance(found, Bundle):
            found = self._made.get(index >> MEMBER_BITS) or _part(
                found, index >> MEMBER_BITS & PART_MASK, gone
            )
        number = index & found.member_mask
        if not number:
            return found, None
        numbered = found.numbered
        if number <= len(numbered):
            group, member = numbered[number - 1]
            where: Entry | None = found if group is None else group.of(found)
            if where is not None and (member is None or member.present(where)):
                if member is not None and self.renewed and member.renewable:
                    self._check_new(inode, found)
                return where, member
        raise OSError(gone, "removed")

    def named(self, inode: int) -> tuple[Entry, Member | None]:
        """As `locate`, for a call that may have come by a name: OSError(ESTALE) has the kernel look the name
        up anew."""
        try:
            return self.locate(inode)
        except _Renewed as error:
            raise OSError(errno.ESTALE, "renewed") from error
        except OSError:
            self.gone.check_name(block_of(inode))
            raise

    def _check_new(self, inode: int, directory: Entry) -> None:
        """Raise OSError(ENODEV) for the number of a file that its device had before it was renewed."""
        if inode & ~BASE_MASK != self.renewed.get(directory.number, 0):
            raise _Renewed(errno.ENODEV, "renewed")

    def knows(self, child: Child) -> bool:
        """Whether an entry, or a bundle, that was found in a directory is still in the tree."""
        return child.block in self._blocks

    def own_inode(self, inode: int) -> int:
        """An inode number that no other lookup of this file gives, and that the file has not by itself.  The
        kernel locks an inode for as long as a write to it takes, and a process that waits for this lock
        cannot be interrupted.  So a store that waits must not share its inode with another store."""
        return inode | (1 + next(self._lookups) % (MOST_LOOKUPS - 1)) * (BASE_MASK + 1)

    def spare_inode(self) -> int:
        """An inode number that stands for nothing.  Any thread."""
        return (next(self._numbers) << BLOCK_SHIFT) + 1

    def directory(self, inode: int) -> Kobject:
        """The directory of `inode`.  Raises OSError: ENOENT when it is gone, ENOTDIR when it is a file."""
        try:
            entry, member = self.locate(inode)
        except OSError:
            raise OSError(errno.ENOENT, "removed") from None
        if member is not None:
            raise OSError(errno.ENOTDIR, member.name)
        found = _directory(entry)
        holder = _directory(found.holder)
        if not self._keeps(holder):
            if len(self._made) >= MOST_MADE:
                self._made.clear()
            self._made[holder.number] = holder
        return found

    def getattr(self, inode: int) -> Lookup:
        """What `inode` stands for, with its stat.  Raises OSError as `named`."""
        entry, member = self.named(inode)
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
        if is_directory:
            self._changes.touched.add(directory.inode)

    def _keeps(self, directory: Kobject) -> bool:
        """Whether it keeps its children: an entry of a bundle is made with the children that it has."""
        return self._blocks.get(directory.block) is directory

    def _forget_files(self, directory: Kobject) -> None:
        """The directory is gone: have the kernel forget what it knows of its files."""
        touched, block, ctime_ns = self._changes.touched, directory.block, directory.ctime_ns
        touched.add(directory.inode)
        for inode, is_group in files_of(directory):
            touched.add(inode)
            if is_group:
                self.gone.add(block, inode, ctime_ns)

    def _disown(self, entry: Entry) -> None:
        if isinstance(entry, Kobject):
            self.gone.add(entry.block, entry.inode, entry.ctime_ns)
            self._forget_files(entry)
        self._drop_block(entry.block)
        for child in list((entry.children or {}).values()) if isinstance(entry, Kobject) else ():
            if isinstance(child, Entry):
                self._disown(child)

    def _drop_block(self, block: int) -> None:
        self._blocks.pop(block, None)
        if self.root.settings:
            settings = self.root.settings.items()
            self.root.settings = {number: value for number, value in settings if number >> PART_BITS != block}
        if self.renewed:
            self.renewed = {
                number: bits for number, bits in self.renewed.items() if number >> PART_BITS != block
            }
        if self.iattrs:
            self.iattrs = {inode: value for inode, value in self.iattrs.items() if block_of(inode) != block}


def _part(bundle: Bundle, index: int, gone: int) -> Entry:
    """An entry of a device, which may be removed at this moment.  Raises OSError(`gone`) then."""
    try:
        return bundle.entry(index)
    except LookupError as error:
        raise OSError(gone, "removed") from error


def _directory(entry: Entry | Member) -> Kobject:
    if not isinstance(entry, Kobject):
        raise OSError(errno.ENOTDIR, entry.name)
    return entry
