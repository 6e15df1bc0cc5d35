# SPDX-License-Identifier: Apache-2.0
"""The namespace lane: pyfuse3's handlers of the tree, and the open snapshots.

All state belongs to the trio thread.

A name is gone for every process once the write(2) that removed it returns, whatever the cache time of the lab
file: the kernel caches no name that can go at any time, and others so shortly that the answer waits for that.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import stat
from collections.abc import Callable
from functools import partial

import trio

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.lifecycle.removal import patiently
from ioctl_shim.fuse import pyfuse3
from ioctl_shim.lane import check_open, forget_stats
from ioctl_shim.lanefile import InodeAttr
from vfsfuse import ownfolder
from vfsfuse.kernfs.errors import Refusals, errors
from vfsfuse.kernfs.extended import ExtendedAttributes
from vfsfuse.kernfs.inodes import NANOSECONDS, Inodes
from vfsfuse.kernfs.kobject import FORGOTTEN_NS, Child, DeviceNode, Entry, Kobject, Member
from vfsfuse.kernfs.members import Attribute, SnapshotMember
from vfsfuse.kernfs.storetasks import after_releases
from vfsfuse.kernfs.tree import BASE_MASK, IAttrs
from vfsfuse.kernfs.watchers import Watchers
from vfsfuse.kernfs.xattr import XATTR_PID

log = logging.getLogger(__name__)
BLOCK = 4096
UNTYPED = 1
"""As st_rdev: a listing does not tell the type of this file (native/interpose.c)."""
AT_ONCE = 2
"""Snapshots that are made at the same time: a large picture takes a processor, and memory, for a while."""
MOST_WAITING = 64
"""Opens that wait for their snapshot: each keeps one of pyfuse3's tasks, and other requests need some too."""
POLL_MASK = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


class Snapshots:
    """The open snapshots (kernfs.members.SnapshotMember) by file handle.  Handles are small numbers, smaller
    than the inode number of any attribute.

    Worker threads make the contents, with a limit of their own, so that neither trio nor the device lane
    waits, nor the other uses of trio's worker threads.
    """

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}
        self._handles = itertools.count(1)
        self._waiting = 0
        self._limiter = trio.CapacityLimiter(AT_ONCE)

    async def open(self, make: Callable[[], bytes]) -> int:
        """The handle of a new snapshot.  Raises OSError as `make` does, and EAGAIN when too many wait."""
        if self._waiting >= MOST_WAITING:
            raise OSError(errno.EAGAIN, "too many pictures are being taken")
        self._waiting += 1
        try:  # when nobody waits for a content any more, it is still made to its end, and dropped
            content = await trio.to_thread.run_sync(make, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            self._waiting -= 1
        handle = next(self._handles)
        self._contents[handle] = content
        return handle

    def get(self, handle: int) -> bytes | None:
        """The content of an open snapshot, None for a handle that is none."""
        return self._contents.get(handle)

    def release(self, handle: int) -> None:
        self._contents.pop(handle, None)


class Operations(Refusals):
    """The handlers.  Stores pass `calls`, the lab's call point.  `folder` gives the path of the lab's folder
    on disk; it may wait, and raises OSError."""

    supports_dot_lookup = False

    def __init__(self, inodes: Inodes, calls: CallPoint, folder: Callable[[], str]) -> None:
        super().__init__()
        self._folder = folder
        self.inodes, self.tree, self._calls = inodes, inodes.tree, calls
        self._listings: dict[int, list[Child | Member]] = {}
        self._owners: dict[int, Kobject | None] = {}
        self._next_listing = 1
        self._snapshots = Snapshots()
        self._publishing = trio.Lock()
        self._xattrs = ExtendedAttributes(self.tree)
        self.watchers = Watchers(self.tree)

    # ---- lookups and stats; as a rule the device lane has answered them, by the same Inodes ----

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with errors("lookup"):
            return _attributes(self.inodes.lookup(parent_inode, name))

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        with errors("getattr"):
            return _attributes(self.inodes.stat(inode))

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        with errors("setattr"):
            if self._is_gone(inode):
                return _attributes(self.inodes.stat(inode))
            entry, _ = self.tree.named(inode) if fh is None else self.tree.locate(inode)
            if fields.update_size and isinstance(entry, DeviceNode):
                raise OSError(errno.EINVAL, f"{entry.name} is a device")
            changed = self.tree.iattrs.setdefault(inode & BASE_MASK, IAttrs())
            if fields.update_mode:
                changed.mode = stat.S_IMODE(attr.st_mode)
            if fields.update_uid:
                changed.uid = attr.st_uid
            if fields.update_gid:
                changed.gid = attr.st_gid
            # a new size and new times are ignored, as in sysfs
            return _attributes(self.inodes.stat(inode))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        with errors("readlink"):
            return self.inodes.readlink(inode)

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # default_permissions: the kernel has checked

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        made = pyfuse3.StatvfsData()
        made.f_bsize = made.f_frsize = BLOCK
        made.f_namemax = 255
        return made

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if inode == pyfuse3.ROOT_INODE and name == XATTR_PID.encode():
            return str(os.getpid()).encode()
        if inode == pyfuse3.ROOT_INODE and name == ownfolder.XATTR.encode() and ctx.uid == os.geteuid():
            with contextlib.suppress(OSError):
                return os.fsencode(await trio.to_thread.run_sync(self._folder))
        with errors("getxattr"):
            return self._xattrs.get(inode, name)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        with errors("setxattr"):
            self._xattrs.set(inode, name, value)

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        with errors("listxattr"):
            return self._xattrs.names(inode, ctx.pid)

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with errors("removexattr"):
            self._xattrs.remove(inode, name)

    # ---- directories ----

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        with errors("opendir"):
            directory = None if self._is_gone(inode) else self.tree.directory(inode)
            if directory is not None and directory.devtmpfs:
                await self.watchers.gate_of(directory).enter()
            handle, self._next_listing = self._next_listing, self._next_listing + 1
            self._listings[handle] = []
            self._owners[handle] = directory
            return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        with errors("readdir"):
            owner, listing = self._owners[fh], self._listings[fh]
            if owner is None or self._is_gone(owner.inode):
                return
            if start_id == 0:  # the first call, or after rewinddir(3): what is there now
                listing[:] = self.tree.directory(owner.inode).entries()
                self.tree.tell(owner)
            elif not self.tree.knows(owner):
                return
            dots = {b".": owner, b"..": owner.parent or owner}
            for index, (name, directory) in enumerate(dots.items()):
                if index >= start_id:
                    attr = _attributes(self.inodes.stat(directory.inode))
                    if not pyfuse3.readdir_reply(token, name, attr, index + 1):
                        return
            for index in range(max(start_id, len(dots)), len(dots) + len(listing)):
                if not self._reply(token, owner, listing[index - len(dots)], index + 1):
                    return

    def _reply(
        self, token: pyfuse3.ReaddirToken, owner: Kobject, listed: Child | Member, following: int
    ) -> bool:
        try:
            found = self.inodes.listed(owner, listed)
        except OSError:
            found = None  # it is going
        if found is None:
            return True
        name, attr = found
        attributes = _attributes(attr)
        if owner.of_dev:
            attributes.st_rdev = UNTYPED
        return pyfuse3.readdir_reply(token, name.encode(), attributes, following)

    def _is_gone(self, inode: int) -> bool:
        return self.tree.gone.ctime_ns(inode) is not None

    async def releasedir(self, fh: int) -> None:
        self._listings.pop(fh, None)
        owner = self._owners.pop(fh, None)
        if owner is not None and owner.devtmpfs:
            self.watchers.gate_of(owner).leave()

    # ---- snapshots; device files and attributes are opened, and closed, by the pump ----

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        with errors("open"):
            entry, member = self.tree.named(inode)
            if not isinstance(member, SnapshotMember):
                raise OSError(errno.EIO, "not a file of this lane")
            if flags & os.O_ACCMODE != os.O_RDONLY:  # as sysfs: even root cannot
                raise OSError(errno.EACCES, f"{member.name} is read-only")
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, f"{member.name} has no direct I/O")
            check_open()
            handle = await self._snapshots.open(partial(member.content, entry))
            return pyfuse3.FileInfo(fh=handle, direct_io=True)  # and so without mmap: native/interpose.c

    async def flush(self, fh: int) -> None:
        return

    async def release(self, fh: int) -> None:
        self._snapshots.release(fh)

    # ---- attributes ----

    async def read(self, fh: int, off: int, size: int) -> bytes:
        with errors("show"):
            snapshot = self._snapshots.get(fh)
            if snapshot is not None:
                return snapshot[off : off + size]
            entry, member = self._attribute(fh)
            return member.read(entry)[off : off + size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """A store.  Every one is from the start, as sysfs has it: in place of an offset, the pump gives the
        client's thread."""
        with errors("store"):
            if self._calls.observers:
                return await self._observed_write(fh, buf, off)
            try:
                return await self.store(fh, buf)
            finally:
                await self.publish()

    async def _observed_write(self, fh: int, data: bytes, tid: int) -> int:
        entry, member = self._attribute(fh)
        call = Call(CallKind.STORE, entry.path, member.name, {"data": data}, tid)
        try:
            return await self._calls.tell_async(call, lambda: self.store(fh, data))
        finally:
            await self.publish()

    async def store(self, fh: int, data: bytes) -> int:
        """A store.  If it was delayed, or waits, its directory may be gone by now.  :meth:`publish` has to
        follow."""

        def store() -> int:
            entry, member = self._attribute(fh)
            return member.write(entry, data)

        await after_releases()
        return await patiently(store)

    async def publish(self) -> None:
        """Tell the kernel what has changed, then deliver the uevents: a listener finds in the tree what it
        hears of, and no longer what is gone."""
        async with self._publishing:
            changes, events = self.tree.take_changes(), self.tree.root.uevents.take()
            forget_stats(changes.touched)
            if changes.lingers:
                await trio.sleep(FORGOTTEN_NS / NANOSECONDS)
            self.tree.root.uevents.deliver(events)
            self.watchers.tell(changes.names)

    async def poll(
        self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, ctx: pyfuse3.RequestContext
    ) -> int:
        return POLL_MASK

    def _attribute(self, inode: int) -> tuple[Entry, Attribute]:
        entry, member = self.tree.locate(inode)
        if not isinstance(member, Attribute):
            raise OSError(errno.EIO, "not an attribute")
        return entry, member


def _attributes(attr: InodeAttr) -> pyfuse3.EntryAttributes:
    made = pyfuse3.EntryAttributes()
    made.st_ino, made.st_mode, made.st_nlink, made.st_size, made.st_uid, made.st_gid, at, kept, named = attr
    made.st_atime_ns = made.st_mtime_ns = made.st_ctime_ns = at
    made.st_blksize = BLOCK
    made.entry_timeout, made.attr_timeout = named / NANOSECONDS, kept / NANOSECONDS
    return made
