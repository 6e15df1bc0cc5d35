# SPDX-License-Identifier: Apache-2.0
"""The calls on open files of VFIO and of regions, while somebody attends to them at the call point.

An ObservedFile makes the calls of a file, on the thread that would make them otherwise, so nobody waits
longer.  It is made when the first of its calls is to be told.  A call that the listener attends to may be
held up: that is a SteeredCall, which keeps no thread.  A thread of `CallThreads` makes it when it goes on.
Everything else is as without either.
Threads: the pump begins calls; threads of `CallThreads` make those that may wait.  Source:
devmodel.calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, NoReturn, TypeVar

from devmodel.calls.call import Call
from devmodel.calls.injection import Body
from devmodel.calls.point import CallPoint
from devmodel.calls.steered import Steered
from ioctl_shim.abi import Fetched
from ioctl_shim.client import writes
from ioctl_shim.lane import Opened, SizedIoctl
from ioctl_shim.procfs import is_killed
from vfsfuse.vfio.fops import VfioFops
from vfsfuse.vfio.port import RegionFile
from vfsfuse.vfio.told import ToldFile, struct_after, struct_before

T = TypeVar("T")
LOOK_SECONDS = 0.5
"""From one look to the next whether a client was killed for which another process makes a call."""


class SteeredCall(Generic[T]):
    """A call that has begun, and how it is made: `ioctl_shim.lanefile.Later`.

    `client` is a thread whose signals do not come here, because another process makes the call for it."""

    __slots__ = ("_body", "_client", "_steered")

    def __init__(self, steered: Steered, body: Body[T], client: int = 0) -> None:
        self._steered, self._body, self._client = steered, body, client
        steered.unlocked = True

    def wait(self, ready: Callable[[], None]) -> None:
        self._steered.wait(ready)
        if self._client:
            self._steered.look_later(LOOK_SECONDS, self._look)

    def interrupt(self) -> bool:
        return self._steered.interrupt()

    @property
    def prompt(self) -> bool:
        injection = self._steered.injection
        if injection.after is not None:  # a thread is to do that
            return False
        if self._steered.interrupted or injection.error is not None:
            return True
        return injection.drop and self._body.dropped is not None

    def finish(self, error: OSError | None = None) -> T:
        if error is not None:
            with self._steered.told():
                raise error
        return self._steered.make(self._body)

    def _look(self) -> None:
        """End the call if the client was killed, or look again."""
        if is_killed(self._client):
            self._steered.interrupt()
        else:
            self._steered.look_later(LOOK_SECONDS, self._look)


class ObservedFile:
    """One open file while somebody attends to it: `ioctl_shim.lanefile.Observed`.

    `path` gives the file's path in the mount, empty when it has none any more."""

    __slots__ = ("_calls", "_path", "_told")

    def __init__(self, told: ToldFile, calls: CallPoint, path: Callable[[], str]) -> None:
        self._told, self._calls, self._path = told, calls, path

    # ---- reads and writes ----

    def steer_read(self, offset: int, size: int, tid: int) -> SteeredCall[bytes] | None:
        told = self._told
        steered = self._calls.steer(told.read_call(offset, size, tid))
        if steered is None:
            return None
        dropped = partial(told.zeros, offset, size)
        return SteeredCall(steered, Body(lambda: told.read(offset, size), dropped=dropped))

    def steer_write(self, offset: int, data: bytes, tid: int) -> SteeredCall[int] | None:
        told = self._told
        steered = self._calls.steer(told.write_call(offset, data, tid))
        if steered is None:
            return None
        return SteeredCall(steered, Body(partial(told.write, offset), data, lambda: len(data)))

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

    # ---- ioctls ----

    def begin_ioctl(
        self, cmd: int, arg: int, tid: int, slot: int
    ) -> int | SteeredCall[int] | Callable[[], int] | None:
        told = self._told
        row = told.row(cmd)
        if row is not None and row.blocking:
            return None
        call = told.ioctl_call(row, cmd, arg, tid)
        listener = self._calls.attends(call)
        if listener is None and not self._calls.observers:
            return told.file.ioctl(cmd, arg, tid, slot)
        fetched = Fetched(slot)
        before, reply, written = struct_before(row, arg, tid, fetched, self._calls.recorded), b"", writes.last
        steered = told.begin(self._calls, listener, call, before)
        if listener is not None and not steered.injection.plain:
            return self._steered_ioctl(steered, call, cmd)
        try:
            try:
                result = told.file.ioctl(cmd, arg, tid, slot)
            finally:  # an error has an answer, too
                reply = fetched.send(tid, arg)
        except BaseException as error:
            call.error, call.after = error, struct_after(before, arg, tid, written, reply)
            steered.end()
            raise
        if result is None:
            return partial(self._finish, call, steered, cmd)
        call.result, call.after = result, struct_after(before, arg, tid, written, reply)
        steered.end()
        return result

    def ioctl(self, cmd: int, arg: int, tid: int) -> int | SteeredCall[int]:
        told = self._told
        row = told.row(cmd)
        call = told.ioctl_call(row, cmd, arg, tid)
        listener = self._calls.attends(call)
        if listener is None and not self._calls.observers:
            return told.ioctl(call, cmd)
        steered = told.begin(
            self._calls, listener, call, struct_before(row, arg, tid, None, self._calls.recorded)
        )
        later = self._steered_ioctl(steered, call, cmd)
        return later if steered.waits else later.finish()

    def sized_ioctl(self, sized: SizedIoctl) -> int | _SizedCall:
        told = self._told
        call, gives = told.sized_call(sized)
        listener = self._calls.attends(call) if gives else None  # others are no calls of clients
        if listener is None and not self._calls.observers:
            return told.file.sized_ioctl(sized)
        steered = self._calls.begin(listener, call)
        later = _SizedCall(steered, lambda: told.sized_ioctl(call, sized), call.tid)
        return later if steered.waits else later.finish()

    def release(self) -> None:
        calls = self._calls
        if calls.observers:
            calls.tell(self._told.close_call(self._path()), self._told.file.release)
        else:
            self._told.file.release()

    def _steered_ioctl(self, steered: Steered, call: Call, cmd: int) -> SteeredCall[int]:
        return SteeredCall(steered, Body(lambda: self._told.ioctl(call, cmd), dropped=_zero))

    def _finish(self, call: Call, steered: Steered, cmd: int) -> int:
        """Make an ioctl that its handler has left to a thread that may wait.  It began on the pump."""
        with steered.told():
            call.result = result = self._told.ioctl(call, cmd)
        return result


class _SizedCall:
    """As SteeredCall, for an ioctl that has a size.  Its result is none that a client gets, and is not told.
    The supervisor of `vfsfuse run` makes it for `client`."""

    __slots__ = ("_results", "_steered", "interrupt", "wait")

    def __init__(self, steered: Steered, function: Callable[[], int], client: int) -> None:
        self._results = list[int]()
        self._steered = SteeredCall(steered, Body(lambda: self._results.append(function())), client)
        self.wait, self.interrupt = self._steered.wait, self._steered.interrupt

    @property
    def prompt(self) -> bool:
        return self._steered.prompt

    def finish(self, error: OSError | None = None) -> int:
        self._steered.finish(error)
        return self._results[-1]


def _zero() -> int:
    return 0


def _no_page(error: int) -> NoReturn:
    raise OSError(-error, "the host has no page for this memory")


def told_file(opened: Opened) -> ToldFile | None:
    """What is told of an open file; None for one that is not of VFIO or of a region."""
    file = opened.file
    return ToldFile(opened, file) if isinstance(file, VfioFops | RegionFile) else None
