# SPDX-License-Identifier: Apache-2.0
"""Stores while a listener is there (devmodel.calls): each is a task, which may wait and ends at a signal.

What a listener attends to may be the store itself, or a lifecycle change that it makes.  pyfuse3 has a
limited number of tasks, and passes no signal on.  So the pump keeps the write of each store, and answers it
when its task is done.  The store itself is made on the trio thread, as every one.
Threads: the pump begins stores, the trio thread makes them.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.calls.stores import owing
from devmodel.device.tasks import Task, TaskHost
from ioctl_shim.lanefile import PendingRequest, answer_of
from vfsfuse.kernfs.members import Attribute
from vfsfuse.kernfs.tree import Tree

log = logging.getLogger(__name__)
Begin = Callable[[PendingRequest], None]


class SteeredStores:
    """The stores of one mount.  `store` makes one, given an inode, `publish` tells the kernel what has
    changed (vfsfuse.kernfs.operations)."""

    def __init__(
        self,
        tree: Tree,
        calls: CallPoint,
        host: TaskHost,
        store: Callable[[int, bytes], Awaitable[int]],
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self._tree, self._calls, self._host = tree, calls, host
        self._store, self._publish = store, publish

    def steer(self, inode: int, data: bytes, tid: int) -> Begin | None:
        """What begins the store, to answer its write later; None for what is left to pyfuse3.  Device
        lane."""
        if not self._host.serving:
            return None
        try:
            entry, member = self._tree.locate(inode)
        except OSError:  # pyfuse3 says so
            return None
        if not isinstance(member, Attribute):
            return None
        call = Call(CallKind.STORE, entry.path, member.name, {"data": data}, tid)
        return partial(self._begin, call, inode, data)

    def _begin(self, call: Call, inode: int, data: bytes, pending: PendingRequest) -> None:
        scope = trio.CancelScope()
        pending.when_interrupted(lambda: self._host.soon(scope.cancel))
        try:
            self._host.begin(Task(self._run, (call, inode, data, pending, scope)))
        except RuntimeError as error:
            raise OSError(errno.ENODEV, "the lab ends") from error

    async def _run(
        self, call: Call, inode: int, data: bytes, pending: PendingRequest, scope: trio.CancelScope
    ) -> None:
        taken, error = 0, errno.EINTR
        try:
            with scope, owing() as debt:
                try:
                    taken, error = await self._outcome(call, inode, data)
                finally:
                    with trio.CancelScope(shield=True):
                        await self._publish()
                await debt.pay()
            if scope.cancelled_caught:
                error = errno.EINTR
        finally:  # whatever happens: without an answer, not even SIGKILL ends the client
            if error:
                pending.fail(error)
            else:
                pending.written(taken)

    async def _outcome(self, call: Call, inode: int, data: bytes) -> tuple[int, int]:
        """The bytes that a store has taken, and its errno."""
        try:
            made = partial(self._store, inode)
            return await self._calls.run_async(call, made, data, lambda: len(data)), 0
        except OSError as error:
            log.debug("%s: %s", call.name, error)
            return 0, answer_of(error)
        except (Exception, SystemExit):
            log.exception("%s failed", call.name)
            return 0, errno.EIO
