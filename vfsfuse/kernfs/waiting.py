# SPDX-License-Identifier: Apache-2.0
"""Stores that may wait: a write(2) is answered when its store() is done, or when a signal ends it.

The attributes are kernfs.members.WaitingStore.  The device lane opens them and takes the writes: the
namespace lane has a limited number of tasks, and stores that wait would keep them.  The store() itself runs
on the trio thread, as that of every attribute.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable

import trio

from devmodel.calls.call import Call, CallKind
from devmodel.calls.stores import owing
from devmodel.device.tasks import Task, TaskHost
from ioctl_shim.lane import DeferringFile, Opened, OpenRequest, PendingRequest
from ioctl_shim.lanefile import answer_of
from vfsfuse.kernfs.kobject import Entry, Member
from vfsfuse.kernfs.members import PAGE_SIZE, WaitingStore

log = logging.getLogger(__name__)


class StoreRunner:
    """Runs the stores of one mount.  `locate` gives the attribute of an inode, or raises OSError(ENODEV)."""

    def __init__(self, host: TaskHost, locate: Callable[[int], tuple[Entry, Member | None]]) -> None:
        self._host, self._locate = host, locate
        self.publish: Callable[[], Awaitable[None]] | None = None
        """Tells the kernel what has changed (Operations.publish).  Set before the mount."""

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
        scope = trio.CancelScope()
        pending.when_interrupted(lambda: self._host.soon(scope.cancel))
        try:
            self._host.begin(Task(self._run, (call, inode, pending, data[:PAGE_SIZE], scope)))
        except RuntimeError as error:
            raise OSError(errno.ENODEV, "the lab ends") from error

    def _find(self, inode: int) -> tuple[Entry, WaitingStore]:
        entry, member = self._locate(inode)
        if not isinstance(member, WaitingStore):
            raise OSError(errno.ENODEV, "removed")
        return entry, member

    async def _run(
        self, call: Call, inode: int, pending: PendingRequest, data: bytes, scope: trio.CancelScope
    ) -> None:
        error = errno.EIO
        try:
            with scope, owing() as debt:
                try:
                    error = await self._errno(call, inode, data)
                finally:
                    with trio.CancelScope(shield=True):
                        await self._published()
                await debt.pay()
            if scope.cancelled_caught:
                error = errno.EINTR
        finally:  # whatever happens: without an answer, not even SIGKILL ends the client
            if error:
                pending.fail(error)
            else:
                pending.written(len(data))

    async def _published(self) -> None:
        if self.publish is not None:
            await self.publish()

    async def _errno(self, call: Call, inode: int, data: bytes) -> int:
        """The errno that a store ends with, 0 when it succeeded."""

        async def store(data: bytes) -> None:
            entry, member = self._find(inode)  # it may have gone while this was held up
            await member.write(entry, data)

        try:
            await self._host.calls.run_async(call, store, data, _nothing)
        except OSError as error:
            log.debug("%s: %s", call.name, error)
            return answer_of(error)
        except (Exception, SystemExit):
            log.exception("%s failed", call.name)
            return errno.EIO
        return 0


def _nothing() -> None:
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
