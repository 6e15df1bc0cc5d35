# SPDX-License-Identifier: Apache-2.0
"""Open VFIO files that have a listener: each ioctl and each access of a region passes the call point.

The pump answers no request on such a file by itself.  Every call runs on a thread of its own, so a delay
holds up only its caller.  Everything else is as without a listener.
Threads: the pump begins calls; threads of `CallThreads` make them.  Source: devmodel.callpoint.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from devmodel.callpoint import Call, CallKind, CallPoint
from devmodel.region.backing import REGION_SHIFT
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.lane import DeferringFile, Opened, PendingRequest, SizedIoctl
from ioctl_shim.lanefile import errno_of
from vfsfuse.vfio.fops import VfioFops
from vfsfuse.vfio.group import GroupFops
from vfsfuse.vfio.handover import DeviceRequest
from vfsfuse.vfio.port import RegionFile

T = TypeVar("T")
_IN_REGION = (1 << REGION_SHIFT) - 1


class ListenedFile(DeferringFile):
    """One open of `file`. Its calls pass the call point `calls`."""

    __slots__ = ("_calls", "_regions", "_threads", "file")

    def __init__(self, opened: Opened, file: VfioFops | RegionFile, calls: CallPoint, threads: CallThreads):
        self.file, self._regions = file, opened.regions
        self._calls, self._threads = calls, threads

    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None:
        if on_pump:
            return None
        call = Call(CallKind.IOCTL, self.file.subject, self._name(cmd), {"arg": arg}, tid)
        return self._calls.run(call, lambda: self.file.ioctl(cmd, arg, tid, on_pump=0))

    def sized_ioctl(self, call: SizedIoctl) -> int:
        results: list[int] = []  # it is no result that a client gets
        self._calls.run(self._told(call), lambda: results.append(self.file.sized_ioctl(call)))
        return results[0]

    def _told(self, call: SizedIoctl) -> Call:
        """What listeners are told of an ioctl that has a size.  PREPARE_DEVICE is a client's
        GROUP_GET_DEVICE_FD."""
        asked = DeviceRequest.decode(call) if isinstance(self.file, GroupFops) else None
        if asked is None:
            return Call(CallKind.IOCTL, self.file.subject, f"{call.cmd:#x}", {"data": call.data}, call.tid)
        name = "VFIO_GROUP_GET_DEVICE_FD"
        return Call(CallKind.IOCTL, self.file.subject, name, {"name": asked.name}, asked.client)

    def begin_read(self, pending: PendingRequest) -> None:
        arguments = self._place(pending)
        call = Call(CallKind.REGION, self.file.subject, "read", arguments, pending.tid)
        self._start(pending, call, lambda: self._read(pending), pending.read)

    def begin_write(self, pending: PendingRequest, data: bytes) -> None:
        arguments = {**self._place(pending), "data": data}
        call = Call(CallKind.REGION, self.file.subject, "write", arguments, pending.tid)
        self._start(pending, call, lambda: self._write(pending, data), pending.written)

    def begin_poll(self, handle: int) -> int:
        return self.file.poll()

    def release(self) -> None:
        self.file.release()

    def _start(
        self,
        pending: PendingRequest,
        call: Call,
        function: Callable[[], T],
        reply: Callable[[T], bool],
    ) -> None:
        interrupted = threading.Event()
        pending.when_interrupted(interrupted.set)

        def wait(seconds: float) -> None:
            if interrupted.wait(seconds):
                raise OSError(errno.EINTR, "interrupted")

        def answer() -> None:
            try:
                reply(self._calls.run(call, function, wait))
            except BaseException as error:  # the client waits for an answer, whatever a model does
                pending.fail(errno_of(error))

        self._threads.submit(answer, pending.tid)

    def _read(self, pending: PendingRequest) -> bytes:
        if self._regions is None:
            return self.file.read(pending.offset, pending.size)
        return self._regions.read(pending.offset >> REGION_SHIFT, pending.offset & _IN_REGION, pending.size)

    def _write(self, pending: PendingRequest, data: bytes) -> int:
        if self._regions is None:
            return self.file.write(pending.offset, data)
        return self._regions.write(pending.offset >> REGION_SHIFT, pending.offset & _IN_REGION, data)

    def _place(self, pending: PendingRequest) -> dict[str, object]:
        index, offset = self.file.index, pending.offset
        if index is None:
            index, offset = offset >> REGION_SHIFT, offset & _IN_REGION
        return {"region": index, "offset": offset, "size": pending.size}

    def _name(self, cmd: int) -> str:
        found = self.file.handlers.get(cmd) if isinstance(self.file, VfioFops) else None
        return f"{cmd:#x}" if found is None else found[0].name


def listened(opened: Opened, calls: CallPoint, threads: CallThreads) -> Opened:
    """A copy of `opened` whose calls all pass the call point.  `opened` itself if it is not a file of VFIO or
    of a region."""
    file = opened.file
    if not isinstance(file, VfioFops | RegionFile):
        return opened
    wrapped = ListenedFile(opened, file, calls, threads)
    return replace(opened, file=wrapped, memory=None, regions=None, submit=threads.submit)
