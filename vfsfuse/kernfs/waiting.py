# SPDX-License-Identifier: Apache-2.0
"""Attributes whose store() may wait: their open files, whose writes are tasks (kernfs.storetasks).

The attributes are kernfs.members.WaitingStore.  The device lane opens them and takes the writes: the
namespace lane has a limited number of tasks, and stores that wait would keep them.  The store() itself runs
on the trio thread, as that of every attribute.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Body
from devmodel.device.tasks import TaskHost
from ioctl_shim.lane import DeferringFile, Opened, OpenRequest, PendingRequest
from ioctl_shim.lanefile import answer_of
from vfsfuse.kernfs.kobject import Entry, Member
from vfsfuse.kernfs.members import PAGE_SIZE, WaitingStore
from vfsfuse.kernfs.storetasks import StoreTasks

log = logging.getLogger(__name__)


class StoreRunner:
    """Runs the stores of one mount.  `locate` gives the attribute of an inode, or raises OSError(ENODEV)."""

    def __init__(self, host: TaskHost, locate: Callable[[int], tuple[Entry, Member | None]]) -> None:
        self._host, self._locate, self.tasks = host, locate, StoreTasks(host)

    def open(self, request: OpenRequest) -> Opened:
        """Open such an attribute.  Device lane.  Raises OSError(EACCES) for reading, for root too, when it
        has no show()."""
        _, member = self._find(request.nodeid)
        if request.flags & os.O_ACCMODE != os.O_WRONLY and not member.readable:
            raise OSError(errno.EACCES, "write-only")
        return Opened(StoreFile(self, request.nodeid))

    def begin_show(self, inode: int, pending: PendingRequest) -> None:
        """Have the trio thread answer a read.  Device lane."""

        def show() -> None:
            try:
                entry, member = self._find(inode)
                pending.read(member.read(entry)[pending.offset :])
            except OSError as error:
                pending.fail(answer_of(error))
            except (Exception, SystemExit):
                log.exception("a show() failed")
                pending.fail(errno.EIO)

        try:
            self._host.soon(show)
        except RuntimeError as error:
            raise OSError(errno.ENODEV, "the lab ends") from error

    def begin(self, inode: int, pending: PendingRequest, data: bytes) -> None:
        """Run a store.  Device lane."""
        entry, member = self._find(inode)
        call = Call(CallKind.STORE, entry.path, member.name, {"data": data[:PAGE_SIZE]}, pending.tid)

        async def store(data: bytes) -> None:
            entry, member = self._find(inode)  # it may have gone while this was held up
            await member.write(entry, data)

        self.tasks.begin(call, pending, Body(store, data[:PAGE_SIZE], _nothing))

    def _find(self, inode: int) -> tuple[Entry, WaitingStore]:
        entry, member = self._locate(inode)
        if not isinstance(member, WaitingStore):
            raise OSError(errno.ENODEV, "removed")
        return entry, member


async def _nothing() -> None:
    """The result of a store that is dropped."""


class StoreFile(DeferringFile):
    """One open of such an attribute."""

    __slots__ = ("_inode", "_runner")

    def __init__(self, runner: StoreRunner, inode: int) -> None:
        self._runner, self._inode = runner, inode

    def begin_read(self, pending: PendingRequest) -> bytes | None:
        self._runner.begin_show(self._inode, pending)
        return None

    def begin_write(self, pending: PendingRequest, data: bytes) -> None:
        self._runner.begin(self._inode, pending, data)
