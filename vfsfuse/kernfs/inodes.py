# SPDX-License-Identifier: Apache-2.0
"""What the names of a tree stand for: lookups, stats, links, and the text of attributes.

`Inodes` answers on the trio thread and on the device lane; `LaneInodes` is the lane's way to it, under
Lab.lock, which everybody holds who changes the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from threading import RLock
from typing import TypeVar

from ioctl_shim.lanefile import InodeAttr
from vfsfuse.kernfs.entry import Lookup
from vfsfuse.kernfs.kobject import Attribute, Child, Kobject, LinkMember, Member, Symlink, relative
from vfsfuse.kernfs.tree import BASE_MASK, IAttrs, Tree
from vfsfuse.kernfs.waiting import WaitingStore

T = TypeVar("T")
DECLARED = IAttrs()
NANOSECONDS = 10**9


class Inodes:
    """The names of `tree`.  `cache` is how many seconds the kernel may keep what it is not told to drop;
    `uid` and `gid` own what names no owner; `waits` is whether stores may wait (vfsfuse.kernfs.waiting)."""

    def __init__(self, tree: Tree, cache: float, uid: int, gid: int, waits: bool) -> None:
        self.tree, self.waits = tree, waits
        self._uid, self._gid = uid, gid
        self._cache_ns = int(cache * NANOSECONDS)

    def lookup(self, parent_inode: int, name: bytes) -> InodeAttr:
        """The entry or member called `name`.  Raises OSError(ENOENT, ENOTDIR)."""
        directory, text = self.tree.directory(parent_inode), os.fsdecode(name)
        found = directory.find(text)
        if found is None:
            return self._named(self.tree.look(directory.hidden(text)), 0)
        if self.waits and isinstance(found, WaitingStore):
            return self._named(self.tree.look(self.tree.own_inode(found.inode(directory))), 0)
        return self._named(found.look(directory), self._cache_ns)

    def stat(self, inode: int) -> InodeAttr:
        """What stat(2) shows of an inode.  Raises OSError as `Tree.locate`."""
        return self._named(self.tree.look(inode), self._cache_ns)

    def listed(self, owner: Kobject, listed: Child | Member) -> tuple[str, InodeAttr] | None:
        """What a listing of `owner` says of what was found in it; None when that is gone.  Raises OSError."""
        if isinstance(listed, Member):
            if not listed.present(owner):
                return None
            waits = self.waits and isinstance(listed, WaitingStore)
            return listed.name, self._named(listed.look(owner), 0 if waits else self._cache_ns)
        if not self.tree.knows(listed):
            return None
        entry = listed.seen_in(owner)
        return entry.name, self._named(entry.look(owner), self._cache_ns)

    def readlink(self, inode: int) -> bytes:
        """Where a symlink points.  Raises OSError(EINVAL, ENOENT)."""
        entry, member = self.tree.locate(inode)
        if isinstance(entry, Symlink):
            return os.fsencode(relative(entry.parent, entry.target))
        if isinstance(member, LinkMember):
            return os.fsencode(relative(entry, member.target(entry)))
        raise OSError(errno.EINVAL, "not a symlink")

    def _named(self, look: Lookup, timeout_ns: int) -> InodeAttr:
        inode, shown, entry = look
        changed = self.tree.iattrs.get(inode & BASE_MASK, DECLARED)
        return InodeAttr(
            inode,
            shown.mode if changed.mode is None else stat.S_IFMT(shown.mode) | changed.mode,
            shown.nlink,
            shown.size,
            first(changed.uid, shown.uid, self._uid),
            first(changed.gid, shown.gid, self._gid),
            entry.ctime_ns,
            timeout_ns,
        )


class LaneInodes:
    """The same on the device lane: None while somebody changes the lab, and for attributes not `prompt`."""

    def __init__(self, names: Inodes, lock: RLock) -> None:
        self._names, self._lock = names, lock

    def lookup(self, parent_inode: int, name: bytes) -> InodeAttr | None:
        """As Inodes.lookup."""
        return self._promptly(lambda: self._names.lookup(parent_inode, name))

    def stat(self, inode: int) -> InodeAttr | None:
        """As Inodes.stat."""
        return self._promptly(lambda: self._names.stat(inode))

    def readlink(self, inode: int) -> bytes | None:
        """As Inodes.readlink."""
        return self._promptly(lambda: self._names.readlink(inode))

    def show(self, inode: int) -> bytes | None:
        """An attribute's text.  Raises OSError as its show() does."""
        return self._promptly(lambda: self._show(inode))

    def _show(self, inode: int) -> bytes | None:
        entry, member = self._names.tree.locate(inode)
        if not isinstance(member, Attribute) or not member.prompt:
            return None
        return member.read(entry)

    def _promptly(self, answer: Callable[[], T]) -> T | None:
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return answer()
        finally:
            self._lock.release()


def first(changed: int | None, declared: int | None, usual: int) -> int:
    """The first value that is not None."""
    if changed is not None:
        return changed
    return usual if declared is None else declared
