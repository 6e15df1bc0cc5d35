# SPDX-License-Identifier: Apache-2.0
"""Open files of VFIO and of regions whose calls pass the call point.

An ObservedFile makes the calls of a file while somebody observes it, on the thread that would make them
otherwise, so nobody waits longer.  It is made when the first of its calls is to be told.  A ListenedFile is
chosen when the file is opened, because a listener may hold up calls: the pump answers no request on such a
file by itself, and every call runs on a thread of its own.  Everything else is as without either.
Threads: the pump begins calls; threads of `CallThreads` make those that may wait.  Source:
devmodel.callpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NoReturn, TypeVar

from devmodel.callpoint import Call, CallPoint, Observers
from devmodel.injection import Wait
from ioctl_shim.abi import Fetched
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.client import writes
from ioctl_shim.lane import DeferringFile, Opened, PendingRequest, SizedIoctl
from ioctl_shim.lanefile import errno_of
from vfsfuse.vfio.fops import VfioFops
from vfsfuse.vfio.port import RegionFile
from vfsfuse.vfio.told import ToldFile, struct_after, struct_before

T = TypeVar("T")


class ObservedFile:
    """One open file while somebody observes: `ioctl_shim.lanefile.Observed`.

    `path` gives the file's path in the mount, empty when it has none any more."""

    __slots__ = ("_calls", "_path", "_told")

    def __init__(self, told: ToldFile, calls: CallPoint, path: Callable[[], str]) -> None:
        self._told, self._calls, self._path = told, calls, path

    def read(self, offset: int, size: int, tid: int, made: bytes | int | None) -> bytes:
        told = self._told

        def read() -> bytes:
            if made is None:
                return told.read(offset, size)
            return _no_page(made) if isinstance(made, int) else made

        return self._calls.tell(told.read_call(offset, size, tid), read)

    def write(self, offset: int, data: bytes, tid: int, made: int | None) -> int:
        told = self._told

        def write() -> int:
            if made is None:
                return told.write(offset, data)
            return _no_page(made) if made < 0 else made

        return self._calls.tell(told.write_call(offset, data, tid), write)

    def begin_ioctl(self, cmd: int, arg: int, tid: int, slot: int) -> int | Callable[[], int] | None:
        told, calls = self._told, self._calls
        row = told.row(cmd)
        if row is not None and row.blocking:
            return None
        fetched = Fetched(slot)
        before, reply, written = struct_before(row, arg, tid, fetched), b"", writes.last
        call = told.ioctl_call(row, cmd, arg, tid, before)
        observers = calls.begin(call)
        try:
            try:
                result = told.file.ioctl(cmd, arg, tid, slot)
            finally:  # an error has an answer, too
                reply = fetched.send(tid, arg)
        except BaseException as error:
            call.error, call.after = error, struct_after(before, arg, tid, written, reply)
            calls.end(observers, call)
            raise
        if result is None:
            return partial(self._finish, call, observers, cmd)
        call.result, call.after = result, struct_after(before, arg, tid, written, reply)
        calls.end(observers, call)
        return result

    def ioctl(self, cmd: int, arg: int, tid: int) -> int:
        row = self._told.row(cmd)
        call = self._told.ioctl_call(row, cmd, arg, tid, struct_before(row, arg, tid, None))
        return self._calls.tell(call, lambda: self._told.ioctl(call, cmd))

    def sized_ioctl(self, sized: SizedIoctl) -> int:
        call, results = self._told.sized_call(sized), list[int]()  # it is no result that a client gets
        self._calls.tell(call, lambda: results.append(self._told.sized_ioctl(call, sized)))
        return results[0]

    def release(self) -> None:
        self._calls.tell(self._told.close_call(self._path()), self._told.file.release)

    def _finish(self, call: Call, observers: Observers, cmd: int) -> int:
        """Make an ioctl that its handler has left to a thread that may wait.  It began on the pump."""
        try:
            call.result = result = self._told.ioctl(call, cmd)
        except BaseException as error:
            call.error = error
            raise
        finally:
            self._calls.end(observers, call)
        return result


def _no_page(error: int) -> NoReturn:
    raise OSError(-error, "the host has no page for this memory")


class ListenedFile(DeferringFile):
    """One open of `file`. Its calls pass the call point `calls`."""

    __slots__ = ("_calls", "_path", "_threads", "file", "kvm_tracks", "told")

    def __init__(
        self, told: ToldFile, calls: CallPoint, threads: CallThreads, path: Callable[[], str]
    ) -> None:
        self.file, self.told, self._path = told.file, told, path
        self.kvm_tracks = told.file.kvm_tracks
        self._calls, self._threads = calls, threads

    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None:
        if on_pump:
            return None
        row = self.told.row(cmd)
        call = self.told.ioctl_call(row, cmd, arg, tid, struct_before(row, arg, tid, None))
        return self._calls.run(call, lambda: self.told.ioctl(call, cmd))

    def sized_ioctl(self, sized: SizedIoctl) -> int:
        call, results = self.told.sized_call(sized), list[int]()  # it is no result that a client gets
        self._calls.run(call, lambda: results.append(self.told.sized_ioctl(call, sized)))
        return results[0]

    def begin_read(self, pending: PendingRequest) -> None:
        offset, size = pending.offset, pending.size
        call = self.told.read_call(offset, size, pending.tid)
        self._start(pending, call, lambda: self.told.read(offset, size), pending.read)

    def begin_write(self, pending: PendingRequest, data: bytes) -> None:
        offset = pending.offset
        call = self.told.write_call(offset, data, pending.tid)
        self._start(pending, call, lambda: self.told.write(offset, data), pending.written)

    def begin_poll(self, handle: int) -> int:
        return self.file.poll()

    def release(self) -> None:
        self._calls.tell(self.told.close_call(self._path()), self.file.release)

    def _start(
        self,
        pending: PendingRequest,
        call: Call,
        function: Callable[[], T],
        reply: Callable[[T], bool],
    ) -> None:
        waits = list[Wait]()

        def interrupt() -> None:
            for wait in waits:
                wait.interrupt()

        pending.when_interrupted(interrupt)

        @contextlib.contextmanager
        def waiting(wait: Wait) -> Iterator[None]:
            waits.append(wait)
            yield

        def answer() -> None:
            try:
                reply(self._calls.run(call, function, waiting=waiting))
            except BaseException as error:  # the client waits for an answer, whatever a model does
                pending.fail(errno_of(error))

        self._threads.submit(answer, pending.tid)


def told_file(opened: Opened) -> ToldFile | None:
    """What is told of an open file; None for one that is not of VFIO or of a region."""
    file = opened.file
    return ToldFile(opened, file) if isinstance(file, VfioFops | RegionFile) else None


def listened(opened: Opened, calls: CallPoint, threads: CallThreads, path: Callable[[], str]) -> Opened:
    """A copy of `opened` whose calls all pass the call point, where a listener may hold them up.  `opened`
    itself if nothing is told of it."""
    told = told_file(opened)
    if told is None:
        return opened
    wrapped = ListenedFile(told, calls, threads, path)
    return replace(opened, file=wrapped, memory=None, regions=None, shut=None, submit=threads.submit)
