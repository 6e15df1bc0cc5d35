# SPDX-License-Identifier: Apache-2.0
"""The file `reload` at the root of a mount: a write of the names of models, or of an empty line, reloads
them.

A read gives the outcome of the last reload, as text: that of the last write through the same open file, if
there was one.  Opens, reads and writes come on the device lane; the trio thread answers writes.
"""

from __future__ import annotations

import errno
import logging

import trio

from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Body
from devmodel.device.tasks import Task, TaskHost
from ioctl_shim.lane import DeferringFile, Opened, OpenRequest, PendingRequest
from ioctl_shim.lanefile import answer_of
from vfsfuse.kernfs.kobject import DeviceNode
from vfsfuse.reload.reloader import Reloader

log = logging.getLogger(__name__)
NAME = "reload"
MOST_BYTES = 4096
"""Bytes of a write."""


class ReloadFile(DeferringFile):
    """One open."""

    __slots__ = ("_host", "_outcome", "_reloader")

    def __init__(self, reloader: Reloader, host: TaskHost) -> None:
        self._reloader, self._host = reloader, host
        self._outcome: str | None = None

    @classmethod
    def node(cls, reloader: Reloader, host: TaskHost) -> DeviceNode:
        """The file, which belongs to the user of the server."""

        def opener(request: OpenRequest) -> Opened:
            return Opened(cls(reloader, host))

        return DeviceNode(NAME, 0o600, opener)

    def begin_read(self, pending: PendingRequest) -> bytes | None:
        outcome = self._reloader.last if self._outcome is None else self._outcome
        text = f"{outcome}\n".encode(errors="backslashreplace") if outcome else b""
        return text[pending.offset : pending.offset + pending.size]

    def begin_write(self, pending: PendingRequest, data: bytes) -> int | None:
        """Raises OSError: EINVAL for what cannot be names, ENODEV when the lab ends, and later as
        `Reloader.reload`."""
        try:
            names = data.decode().split()
        except UnicodeDecodeError as error:
            raise OSError(errno.EINVAL, "names are text") from error
        if len(data) > MOST_BYTES:
            raise OSError(errno.EINVAL, f"{len(data)} bytes of names")
        scope = trio.CancelScope()
        pending.when_interrupted(lambda: self._host.soon(scope.cancel))
        try:
            self._host.begin(Task(self._run, (pending, data, names, scope)))
        except RuntimeError as error:
            raise OSError(errno.ENODEV, "the lab ends") from error
        return None

    async def _run(
        self, pending: PendingRequest, data: bytes, names: list[str], scope: trio.CancelScope
    ) -> None:
        error = errno.EINTR
        try:
            with scope:
                error = await self._errno(pending.tid, data, names)
        finally:  # whatever happens: without an answer, not even SIGKILL ends the client
            if error:
                pending.fail(error)
            else:
                pending.written(len(data))

    async def _errno(self, tid: int, data: bytes, names: list[str]) -> int:
        async def store() -> str:
            return await self._reloader.reload(names)

        try:
            call = Call(CallKind.STORE, "", NAME, {"data": data}, tid)
            self._outcome = await self._host.calls.run_async(call, Body(store))
        except OSError as error:
            self._outcome = str(error.strerror)
            return answer_of(error)
        except (Exception, SystemExit):
            log.exception("reload failed")
            return errno.EIO
        return 0
