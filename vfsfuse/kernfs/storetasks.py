# SPDX-License-Identifier: Apache-2.0
"""Stores that are tasks: a write(2) is answered when its store is done, or when a signal ends it.

Threads: the pump begins a store, the trio thread makes it, as that of every attribute.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable

import trio

from devmodel.calls.call import Call
from devmodel.calls.injection import Body
from devmodel.calls.stores import owing
from devmodel.device.tasks import Task, TaskHost
from ioctl_shim._native import lib
from ioctl_shim.lanefile import PendingRequest, answer_of

log = logging.getLogger(__name__)
Store = Body[Awaitable[int | None]]
"""A store of data.  It gives how many bytes it has taken; None: all of them."""


async def after_releases() -> None:
    """Wait until what was closed before is released, on a busy machine (native/pump.c).  Trio thread."""
    while lib.lane_release_is_late():
        await trio.sleep(0.001)


class StoreTasks:
    """The stores of one mount that are tasks."""

    def __init__(self, host: TaskHost) -> None:
        self._host = host
        self.publish: Callable[[], Awaitable[None]] | None = None
        """Tells the kernel what has changed (Operations.publish).  Set before the mount."""

    def begin(self, call: Call, pending: PendingRequest, store: Store) -> None:
        """Have the trio thread make a store, and answer its write.  Device lane.  Raises OSError(ENODEV) when
        the lab ends."""
        scope = trio.CancelScope()
        pending.when_interrupted(lambda: self._host.soon(scope.cancel))
        try:
            self._host.begin(Task(self._run, (call, pending, store, scope)))
        except RuntimeError as error:
            raise OSError(errno.ENODEV, "the lab ends") from error

    async def _run(self, call: Call, pending: PendingRequest, store: Store, scope: trio.CancelScope) -> None:
        taken, error = 0, errno.EINTR
        try:
            with scope, owing() as debt:
                await after_releases()
                try:
                    taken, error = await self._outcome(call, store)
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
                pending.written(taken)

    async def _published(self) -> None:
        if self.publish is not None:
            await self.publish()

    async def _outcome(self, call: Call, store: Store) -> tuple[int, int]:
        """The bytes that a store has taken, and its errno."""
        try:
            taken = await self._host.calls.run_async(call, store)
        except OSError as error:
            log.debug("%s: %s", call.name, error)
            return 0, answer_of(error)
        except (Exception, SystemExit):
            log.exception("%s failed", call.name)
            return 0, errno.EIO
        return len(store.data or b"") if taken is None else taken, 0
