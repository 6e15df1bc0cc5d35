# SPDX-License-Identifier: Apache-2.0
"""Stores while a listener is there (devmodel.calls): each is a task, which may wait and ends at a signal.

A listener attends to the store itself, or to a lifecycle change that it makes.  pyfuse3 has a limited number
of tasks, and passes no signal on.  So the pump keeps the write of each store, and answers it when its task is
done.  The store itself is made on the trio thread, as every one.
Threads: the pump begins stores, the trio thread makes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Body
from devmodel.device.tasks import TaskHost
from ioctl_shim.lanefile import PendingRequest
from vfsfuse.kernfs.members import Attribute
from vfsfuse.kernfs.storetasks import StoreTasks
from vfsfuse.kernfs.tree import Tree

Begin = Callable[[PendingRequest], None]


class SteeredStores:
    """The stores of one mount.  `store` makes one, given an inode (vfsfuse.kernfs.operations)."""

    def __init__(
        self, tree: Tree, host: TaskHost, tasks: StoreTasks, store: Callable[[int, bytes], Awaitable[int]]
    ) -> None:
        self._tree, self._host, self._tasks, self._store = tree, host, tasks, store

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

        async def dropped() -> int:
            return len(data)

        store = Body(partial(self._store, inode), data, dropped)
        return lambda pending: self._tasks.begin(call, pending, store)
