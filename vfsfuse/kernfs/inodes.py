# SPDX-License-Identifier: Apache-2.0
"""The answers to LOOKUP, GETATTR and READLINK, and to a read of an attribute.

Both lanes give the same answers.  `Inodes` makes them; the trio thread calls it.  The device lane calls
`LaneInodes`, which takes Lab.lock, because whoever changes the tree holds that lock.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from threading import RLock
from typing import TypeVar

from ioctl_shim.lane import ATTR_READ_BIT, ATTR_WRITE_BIT, is_being_written
from ioctl_shim.lanefile import InodeAttr
from vfsfuse.kernfs.bundle import Bundle
from vfsfuse.kernfs.kobject import Child, Kobject, Lookup, Member, Symlink, relative
from vfsfuse.kernfs.members import Attribute, LinkMember, WaitingStore
from vfsfuse.kernfs.tree import BASE_MASK, IAttrs, Tree

T = TypeVar("T")
DECLARED = IAttrs()
NANOSECONDS = 10**9


class Inodes:
    """The inodes of `tree`.  The kernel may cache an answer for `cache` seconds; `uid` and `gid` own what has
    no owner of its own; `waits` says whether stores may wait (vfsfuse.kernfs.waiting)."""

    def __init__(self, tree: Tree, cache: float, uid: int, gid: int, waits: bool) -> None:
        self.tree, self.waits = tree, waits
        self.steered = False
        """Whether a listener may have any store wait (devmodel.calls).  Any thread sets it."""
        self._uid, self._gid = uid, gid
        self._cache_ns = tree.gone.kept_ns = int(cache * NANOSECONDS)

    def lookup(self, parent_inode: int, name: bytes) -> InodeAttr:
        """The attributes of the entry or member called `name` in a directory.  Raises OSError: ENOENT,
        ENOTDIR."""
        directory, text = self.tree.directory(parent_inode), os.fsdecode(name)
        found = directory.find(text)
        if found is None:
            return self._attr(self.tree.getattr(directory.hidden(text)), 0)
        if isinstance(found, Member) and (is_store(found) or (self.steered and is_setting(found))):
            inode = found.inode(directory)
            waits = self.steered or (self.waits and isinstance(found, WaitingStore))
            if waits or is_being_written(inode):
                return self._attr(self.tree.getattr(self.tree.own_inode(inode)), 0)
            return self._attr(found.lookup(directory), self._cache_ns, 0)
        self.tree.tell(directory)
        child = directory.children.get(text) if directory.children else None
        if isinstance(found, Member):
            return self._attr(self._member(directory, found), self._cache_ns, _name_ns(directory, found))
        name_ns = child.looked_up() if isinstance(child, Bundle) else found.name_ns
        return self._attr(found.lookup(directory), self._cache_ns, name_ns)

    def stat(self, inode: int) -> InodeAttr:
        """What stat(2) shows of an inode.  Raises OSError as `Tree.named`."""
        ctime_ns = self.tree.gone.ctime_ns(inode)
        if ctime_ns is not None:
            return InodeAttr(inode, stat.S_IFDIR | 0o755, 2, 0, self._uid, self._gid, ctime_ns, 0, 0)
        return self._attr(self.tree.getattr(inode), self._cache_ns)

    def listed(self, owner: Kobject, listed: Child | Member) -> tuple[str, InodeAttr] | None:
        """The name and the attributes of what was found in `owner`, for a listing; None when it is gone.
        Raises OSError when it goes at this moment."""
        if isinstance(listed, Member):
            if not listed.present(owner):
                return None
            name_ns = 0 if is_store(listed) else _name_ns(owner, listed)
            return listed.name, self._attr(self._member(owner, listed), self._cache_ns, name_ns)
        if not self.tree.knows(listed):
            return None
        entry = listed.seen_in(owner)
        return entry.name, self._attr(entry.lookup(owner), self._cache_ns, entry.name_ns)

    def readlink(self, inode: int) -> bytes:
        """The target of a symlink.  Raises OSError: EINVAL for anything else, ENOENT when it is gone."""
        entry, member = self.tree.named(inode)
        if isinstance(entry, Symlink):
            return os.fsencode(relative(entry.parent, entry.target))
        if isinstance(member, LinkMember):
            return os.fsencode(relative(entry, member.target(entry)))
        raise OSError(errno.EINVAL, "not a symlink")

    def _member(self, owner: Kobject, found: Member) -> Lookup:
        """The answer to a lookup of a member. The files of a model whose device was renewed have other inodes
        than before: no two opens of an inode have different memory, and none reads another attribute."""
        answer, renewed = found.lookup(owner), self.tree.renewed
        if renewed and found.renewable:
            return answer._replace(inode=answer.inode | renewed.get(owner.number, 0))
        return answer

    def _attr(self, found: Lookup, timeout_ns: int, name_ns: int | None = None) -> InodeAttr:
        inode, shown, entry = found
        changed = self.tree.iattrs.get(inode & BASE_MASK, DECLARED)
        kept_ns = timeout_ns
        if entry.stat_ns is not None and inode == entry.inode:
            kept_ns = entry.stat_ns
        return InodeAttr(
            inode,
            shown.mode if changed.mode is None else stat.S_IFMT(shown.mode) | changed.mode,
            shown.nlink,
            shown.size,
            first(changed.uid, shown.uid, self._uid),
            first(changed.gid, shown.gid, self._gid),
            entry.ctime_ns,
            kept_ns,
            timeout_ns if name_ns is None else min(name_ns, timeout_ns),
        )


class LaneInodes:
    """The same on the device lane.  None leaves the answer to the trio thread: while somebody changes the
    lab, and for the text of an attribute that is not `prompt`."""

    def __init__(self, inodes: Inodes, lock: RLock) -> None:
        self._inodes, self._lock = inodes, lock

    def lookup(self, parent_inode: int, name: bytes) -> InodeAttr | None:
        """As Inodes.lookup."""
        return self._promptly(lambda: self._inodes.lookup(parent_inode, name))

    def stat(self, inode: int) -> InodeAttr | None:
        """As Inodes.stat."""
        return self._promptly(lambda: self._inodes.stat(inode))

    def readlink(self, inode: int) -> bytes | None:
        """As Inodes.readlink."""
        return self._promptly(lambda: self._inodes.readlink(inode))

    def show(self, inode: int) -> bytes | None:
        """An attribute's text.  Raises OSError as its show() does."""
        return self._promptly(lambda: self._show(inode))

    def _show(self, inode: int) -> bytes | None:
        entry, member = self._inodes.tree.locate(inode)
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


def _name_ns(owner: Kobject, found: Member) -> int | None:
    """For how many nanoseconds the kernel may cache the name of a member, None for as long as usual."""
    if found.name_ns is None or owner.member_ns is None:
        return owner.member_ns if found.name_ns is None else found.name_ns
    return min(found.name_ns, owner.member_ns)


def first(changed: int | None, declared: int | None, usual: int) -> int:
    """The first value that is not None."""
    if changed is not None:
        return changed
    return usual if declared is None else declared


def is_setting(found: Member) -> bool:
    """Whether it is an attribute that can be written."""
    return bool(found.lane_bits & ATTR_WRITE_BIT)


def is_store(found: Member) -> bool:
    """Whether it can be written and not read, such as `create`, `remove` and `bind`, or its store may wait.

    The kernel locks an inode for a write to it, while it copies the data and until we answer. A client may
    have either wait, and other writers would wait for it. So while somebody may be writing to a store, a
    lookup of it gives an inode number of its own.
    """
    if isinstance(found, Attribute):
        return not found.lane_bits & ATTR_READ_BIT
    return isinstance(found, WaitingStore)
