# SPDX-License-Identifier: Apache-2.0
"""Attributes whose store() may wait: a write(2) to one is answered when it is done, or when a signal ends it.

The device lane opens them and takes the writes, because the namespace lane has a limited number of tasks,
which stores that wait would keep.  The stores themselves run on the trio thread, as those of all attributes
do.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from devmodel.device.tasks import Task, TaskHost
from ioctl_shim.lane import DEVICE_BIT, DeferringFile, Opened, OpenRequest, PendingRequest
from ioctl_shim.lanefile import answer_of
from vfsfuse.kernfs.entry import Entry, Stat
from vfsfuse.kernfs.members import PAGE_SIZE, Member, value_of

log = logging.getLogger(__name__)
S = TypeVar("S")
Store = Callable[[Any, str], Awaitable[None]]


class WaitingStore(Member):
    """A write-only attribute (mode 0200) whose store() is a coroutine; cancelled, it has changed nothing."""

    __slots__ = ("_store", "_when")

    def __init__(self, name: str, store: Store, when: Callable[[Any], bool] | None) -> None:
        super().__init__(name, DEVICE_BIT)
        self._store, self._when = store, when

    def present(self, owner: Any) -> bool:
        return self._when is None or self._when(owner)

    def stat(self, owner: Any) -> Stat:
        return Stat(stat.S_IFREG | 0o200, PAGE_SIZE)

    async def store(self, owner: Any, data: bytes) -> None:
        """Trio thread.  Raises OSError, EINVAL for what does not parse."""
        try:
            await self._store(owner, value_of(data))
        except ValueError as error:
            raise OSError(errno.EINVAL, f"{self.name}: {error}") from error


def waiting_store(
    name: str | None = None, when: Callable[[Any], bool] | None = None
) -> Callable[[Callable[[S, str], Awaitable[None]]], WaitingStore]:
    """Decorator: declare a write-only attribute from its store(), a coroutine."""

    def declare(store: Callable[[S, str], Awaitable[None]]) -> WaitingStore:
        return WaitingStore(name or str(getattr(store, "__name__", "")), store, when)

    return declare


class Stores:
    """Runs the stores of one mount.  `locate` names the attribute of an inode, or raises OSError(ENODEV)."""

    def __init__(self, host: TaskHost, locate: Callable[[int], tuple[Entry, Member | None]]) -> None:
        self._host, self._locate = host, locate
        self.publish: Callable[[], Awaitable[None]] | None = None
        """Tells the kernel what has changed; set once there is a kernel to tell."""

    def open(self, request: OpenRequest) -> Opened:
        """Open such an attribute.  Raises OSError(EACCES): even root cannot read what has no show().  Device
        lane."""
        if request.flags & os.O_ACCMODE != os.O_WRONLY:
            raise OSError(errno.EACCES, "write-only")
        return Opened(StoreFile(self, request.nodeid))

    def begin(self, inode: int, pending: PendingRequest, data: bytes) -> None:
        """Run a store.  Device lane."""
        entry, member = self._locate(inode)
        if not isinstance(member, WaitingStore):
            raise OSError(errno.ENODEV, "removed")
        scope = trio.CancelScope()
        pending.when_interrupted(lambda: self._host.soon(scope.cancel))
        try:
            self._host.begin(Task(self._run, (entry, member, pending, data[:PAGE_SIZE], scope)))
        except RuntimeError as error:
            raise OSError(errno.ENODEV, "the lab ends") from error

    async def _run(
        self,
        entry: Entry,
        member: WaitingStore,
        pending: PendingRequest,
        data: bytes,
        scope: trio.CancelScope,
    ) -> None:
        error = errno.EIO
        try:
            with scope:
                error = await self._errno(entry, member, data)
            if scope.cancelled_caught:
                error = errno.EINTR
            if self.publish is not None:
                await self.publish()
        finally:  # whatever happens, for without an answer not even SIGKILL ends the client
            if error:
                pending.fail(error)
            else:
                pending.written(len(data))

    @staticmethod
    async def _errno(entry: Entry, member: WaitingStore, data: bytes) -> int:
        """What a store ends with, 0 when it was done."""
        try:
            await member.store(entry, data)
        except OSError as error:
            log.debug("%s: %s", member.name, error)
            return answer_of(error)
        except Exception:
            log.exception("%s failed", member.name)
            return errno.EIO
        return 0


class StoreFile(DeferringFile):
    """One open of such an attribute."""

    __slots__ = ("_inode", "_stores")

    def __init__(self, stores: Stores, inode: int) -> None:
        self._stores, self._inode = stores, inode

    def begin_write(self, pending: PendingRequest, data: bytes) -> None:
        self._stores.begin(self._inode, pending, data)
