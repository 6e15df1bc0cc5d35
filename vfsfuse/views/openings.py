# SPDX-License-Identifier: Apache-2.0
"""Opens of the files of the device lane: which file an inode is, and who is told of the open.

Threads: the device lane.  `observing` may be called on any thread.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack
from functools import partial

from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Body
from devmodel.calls.point import CallPoint
from devmodel.iommu.api import MustWait
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.kernfs.kobject import DeviceNode, Entry, Member
from vfsfuse.kernfs.members import BinaryMember, WaitingStore
from vfsfuse.kernfs.tree import Tree, block_of
from vfsfuse.kernfs.waiting import StoreRunner
from vfsfuse.vfio.listened import ObservedFile, SteeredCall, told_file

AGAIN_SECONDS = 1.0
"""Seconds in which the kernel has looked up a name again and opened what it has found."""
MOST_STALE = 64
"""Threads of which is remembered that they were to look up a name again."""


class Openings:
    """Opens the files of one lab's tree."""

    def __init__(self, tree: Tree, stores: StoreRunner, calls: CallPoint) -> None:
        self._tree, self._stores, self._calls = tree, stores, calls
        self._stale: dict[int, tuple[int, float]] = {}
        """The threads whose opens were answered with ESTALE: the block of the device, and when.  Pumps."""

    def open(self, request: OpenRequest) -> Opened | SteeredCall[Opened] | None:
        """Open an inode of the device lane (ioctl_shim.lane.Opener)."""
        if self._calls.attended:
            return self._attended_open(request)
        return self._plain_open(request)

    def _plain_open(self, request: OpenRequest) -> Opened | None:
        try:
            return self._checked_open(request)
        except MustWait:  # another thread opens it
            return None
        except OSError as error:
            if error.errno != errno.ESTALE or (request.on_pump and not self._looked_up_again(request)):
                raise
            # It was there when the pump began the open, or the kernel has looked the name up once more and
            # will not do that again.
            raise OSError(errno.ENODEV, "removed") from None

    def _looked_up_again(self, request: OpenRequest) -> bool:
        """Whether this open of a gone file follows one of another gone device, by which the kernel had a name
        looked up anew for the same thread: both devices were removed while the thread opened them."""
        block, now = block_of(request.nodeid), time.monotonic()
        last, when = self._stale.pop(request.tid, (block, now))
        if last != block and now - when < AGAIN_SECONDS:
            return True
        if len(self._stale) > MOST_STALE:
            self._stale.clear()
        self._stale[request.tid] = block, now
        return False

    def observing(self, opened: Opened, nodeid: int) -> ObservedFile | None:
        """The calls of an open file for observers; None for a file of which nothing is told.  Any thread
        (ioctl_shim.lane.Observing)."""
        told = told_file(opened)
        return None if told is None else ObservedFile(told, self._calls, partial(self._path, nodeid))

    def _attended_open(self, request: OpenRequest) -> Opened | SteeredCall[Opened] | None:
        try:
            entry, member = self._tree.named(request.nodeid)
        except OSError:
            return self._plain_open(request)
        if not is_told(entry, member):
            return self._plain_open(request)
        path, calls = _path(entry, member), self._calls
        call = Call(CallKind.OPEN, path, "open", {"path": path}, request.tid)
        listener = calls.attends(call)
        if listener is None and not calls.observers:
            return self._plain_open(request)
        if request.on_pump:  # where it might have to be begun again
            return None

        def opening() -> Opened:
            opened = self._plain_open(request)
            if opened is None:
                raise RuntimeError("an open waits for another thread")
            told = told_file(opened)
            if told is not None:
                call.subject, call.device = told.subject, told.device
            return opened

        steered = calls.begin(listener, call)
        later = SteeredCall(steered, Body(opening))
        return later if steered.waits else later.finish()

    def _checked_open(self, request: OpenRequest) -> Opened | None:
        opened = self._open(request)
        if opened is None:
            return None
        with ExitStack() as undo:
            undo.callback(opened.file.release)
            if request.flags & os.O_DIRECT:  # the kernel, too, opens a character device before it says so
                raise OSError(errno.EINVAL, "no direct I/O")
            # The device may have got another model, and its files other inodes, since the inode was found.
            # The kernel lets no two opens of an inode have different memory: the second one would be EIO.
            self._tree.named(request.nodeid)
            undo.pop_all()
        return opened

    def _path(self, inode: int) -> str:
        try:
            return _path(*self._tree.locate(inode))
        except OSError:  # it is gone
            return ""

    def _open(self, request: OpenRequest) -> Opened | None:
        entry, member = self._tree.named(request.nodeid)
        if isinstance(member, BinaryMember):
            return member.open(entry, request)
        if isinstance(member, WaitingStore):
            return self._stores.open(request)
        if isinstance(entry, DeviceNode):
            return entry.opener(request)
        raise OSError(errno.EIO, "not a device file")


def is_told(entry: Entry, member: Member | None) -> bool:
    """Whether the calls on a device file are told at the call point: those of VFIO, `config` and
    `resource<N>`."""
    if member is None:
        return entry.parent is None or bool(entry.parent.path)  # no file of the root
    return isinstance(member, BinaryMember) and member.name.startswith(("config", "resource"))


def _path(entry: Entry, member: Member | None) -> str:
    if member is not None:
        return f"{entry.path}/{member.name}"
    return entry.path or entry.name  # one of the unlisted files at the root
