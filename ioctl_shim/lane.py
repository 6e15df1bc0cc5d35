# SPDX-License-Identifier: Apache-2.0
"""The device lane in Python: native/pump.c calls it once for each request that it cannot answer itself.

The pump owns the file table: open and release both run there.  Ioctls that may wait, for a client or for
this mount, run on threads of `CallThreads`; they only look tokens up.  A pump that is held up nevertheless is
replaced by another thread (native/pump.c), so two pumps may be in a handler at once; whatever they share has
a lock.  cffi binds `extern "Python"` functions once a process, so there is one Lane a process.
"""

from __future__ import annotations

import itertools
import logging
import select
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from ioctl_shim import pumped
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import FILE_NUMBER
from ioctl_shim.attended import AttendedFiles, Observing
from ioctl_shim.backing import check_open, close_backing, open_backing
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.heldcalls import (
    Deferred,
    DeferredIoctl,
    Held,
    Submit,
    end_if_killed,
    finish_ioctl,
    finish_sized,
    held_ioctl,
    held_sized,
    waiting_ioctl,
)
from ioctl_shim.inodes import files_are_gone, forget_stats, is_being_written
from ioctl_shim.lanefile import (
    READABLE,
    WRITABLE,
    DeferringFile,
    InodeOperations,
    LaneFile,
    Later,
    Observed,
    PendingRequest,
    PlainFile,
    RegionAccess,
    SizedIoctl,
    errno_of,
    wake_poll,
)
from ioctl_shim.opening import WHOLE, Opened, Opener, OpenFile, OpenRequest, Shut, SteeredOpener

__all__ = [
    "ATTR_BIT",
    "ATTR_READ_BIT",
    "ATTR_WRITE_BIT",
    "DEVICE_BIT",
    "READABLE",
    "WHOLE",
    "WRITABLE",
    "DeferringFile",
    "Lane",
    "LaneFile",
    "OpenRequest",
    "Opened",
    "Opener",
    "PendingRequest",
    "PlainFile",
    "RegionAccess",
    "Shut",
    "SizedIoctl",
    "check_open",
    "close_backing",
    "files_are_gone",
    "forget_stats",
    "is_being_written",
    "open_backing",
    "wake_poll",
]

log = logging.getLogger(__name__)

DEVICE_BIT: int = 1 << lib.LANE_DEVICE_BIT
ATTR_BIT: int = 1 << lib.LANE_ATTR_BIT
ATTR_READ_BIT: int = 1 << lib.LANE_ATTR_READ_BIT
ATTR_WRITE_BIT: int = 1 << lib.LANE_ATTR_WRITE_BIT
OBSERVED: int = lib.LANE_OBSERVED
STEERED: int = lib.LANE_STEERED
"""Bits of `Lane.attend`."""
T = TypeVar("T")


class Lane:
    """The callbacks of the pump, which run on its thread.  `threads` make the calls that may wait."""

    def __init__(
        self, opener: SteeredOpener, names: InodeOperations, threads: CallThreads, observing: Observing
    ) -> None:
        """While somebody attends (`attend`), calls on open files are those of what `observing` gives."""
        self._opener, self._threads = opener, threads
        self._is_attended = False
        self._files: dict[int, OpenFile] = {}
        self._tokens = itertools.count(1)
        self._pending: dict[int, PendingRequest] = {}
        self.attended = AttendedFiles(self._files, self._pending, threads.submit, observing)
        names_called = names.show, names.lookup, names.stat, names.readlink
        self._called = _errno_of, *names_called, *self.attended.called
        self._deferred: dict[int, Deferred] = {}
        """The ioctls that were left to a thread that may wait, and the opens that are held up, by request."""
        self._held_opens: dict[int, Later[Opened]] = {}
        """The opens that are about to be held up, by request."""
        self._finishing: dict[int, Callable[[], Opened]] = {}
        """What gives the files of opens that were, while they are finished."""
        for name in ("open", "read", "write", "ioctl", "poll", "interrupt", "release"):
            failed = _FAILED.get(name, _failed)
            ffi.def_extern(name=f"lane_on_{name}", onerror=failed)(getattr(self, f"_on_{name}"))
        lib.lane_set_python(ffi.new("struct lane_python *", [pumped.address(each) for each in self._called]))

    def start(self) -> None:
        """Start the pump and its watchdog; call it once pyfuse3.init() has mounted."""
        if not lib.lane_supplied():
            raise RuntimeError("pyfuse3 was imported before ioctl_shim: its libfuse symbols bound elsewhere")
        for target, name in ((lib.lane_pump, "device-lane"), (lib.lane_watch, "lane-watchdog")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def stop(self) -> None:
        """End the pump.  It must not call into an interpreter that is shutting down.  Main thread, after the
        last request has been answered."""
        if lib.lane_stop():
            log.warning("device lane: a call into Python does not return")

    def attend(self, who: int) -> None:
        """Who attends from now on: OBSERVED, STEERED, both or 0.  Calls under way are made as they were
        begun.  Any thread."""
        self._is_attended = bool(who)
        lib.lane_attend(who)

    def file_of(self, fd: int) -> LaneFile | None:
        """The lane's open file behind `fd`, which must be a descriptor on this mount.  Not on a pump, because
        the lookup is an ioctl that the pump answers."""
        found = self._files.get(lib.lane_identify(fd))
        return None if found is None else found.opened.file

    def _on_open(self, request: Any) -> int:
        if request.on_pump and lib.lane_release_is_late():
            return self._open_later(request)
        client = request.tid, request.uid, request.gid, bool(request.leads)
        finish = None if request.on_pump else self._finishing.pop(request.unique, None)
        opened = (
            self._opener(OpenRequest(request.nodeid, request.flags, *client, on_pump=bool(request.on_pump)))
            if finish is None
            else finish()
        )
        if opened is None:
            return self._open_later(request)
        if not isinstance(opened, Opened):
            self._held_opens[request.unique] = opened
            return int(lib.LANE_DEFERRED)
        request.token = token = next(self._tokens)
        called = self._callable(opened, request)
        submit = opened.submit or self._threads.submit
        self._files[token] = OpenFile(opened, request.nodeid, called, submit)
        request.region = opened.region
        request.backing_id = opened.backing_id
        request.stream = opened.stream
        request.shut = ffi.NULL if opened.shut is None else opened.shut.native
        if opened.memory is not None:
            lib.lane_memory_get(opened.memory.native)  # the pump drops this reference on release
            request.memory = opened.memory.native
        return 0

    def _open_later(self, request: Any) -> int:
        """Leave an open to a thread that may wait.  A signal ends it only while it is held up."""
        if not request.on_pump:
            raise RuntimeError("an open is left to the thread that it is on")
        copy = ffi.new("struct lane_open *", request[0])
        copy.on_pump = 0
        deferred = Deferred(self._deferred, request.unique, request.tid, self._threads.submit)
        try:
            self._threads.submit(partial(self._open_file, copy, deferred), request.tid)
        except BaseException:
            deferred.close()
            raise
        return int(lib.LANE_DEFERRED)

    def _open_file(
        self, request: Any, deferred: Deferred, finish: Callable[[], Opened] | None = None
    ) -> None:
        """Make an open on a thread that may wait, or have it held up.  `finish` gives the file of one that
        was."""
        if finish is None:
            lib.lane_wait_for_releases()
        else:
            self._finishing[request.unique] = finish
        lib.lane_open_file(request)  # calls _on_open
        later = self._held_opens.pop(request.unique, None)
        if later is None:
            deferred.close()
            return

        def go_on(error: OSError | None) -> None:
            self._open_file(request, deferred, partial(later.finish, error))

        deferred.hold(Held(later, later.finish), go_on)

    def _callable(self, opened: Opened, request: Any) -> tuple[Callable[..., object], ...]:
        """The functions that the pump calls directly, through native/call.c."""
        file = opened.file
        if isinstance(file, DeferringFile):
            request.ioctl = pumped.address(ioctl := file.ioctl)
            return (ioctl,)
        access: LaneFile | RegionAccess = file if opened.regions is None else opened.regions
        called = (access.read, access.write, file.ioctl)
        request.by_region = opened.regions is not None
        request.read, request.write, request.ioctl = map(pumped.address, called)
        request.rows = ffi.NULL if file.rows is None else file.rows
        return called

    def _waiting(self, token: int) -> DeferringFile:
        file = self._files[token].opened.file
        assert isinstance(file, DeferringFile)
        return file

    def _on_read(self, transfer: Any, out: Any) -> int:
        data = self._or_pending(transfer, self._waiting(transfer.token).begin_read)
        if data is None:
            return int(lib.LANE_DEFERRED)
        count = len(data)
        if count > transfer.size:
            raise RuntimeError(f"a read of {transfer.size} bytes returned {count}")
        ffi.memmove(out, data, count)
        return count

    def _on_write(self, transfer: Any, data: Any) -> int:
        file, content = self._waiting(transfer.token), ffi.buffer(data, transfer.size)[:]
        taken = self._or_pending(transfer, lambda pending: file.begin_write(pending, content))
        return int(lib.LANE_DEFERRED) if taken is None else taken

    def _or_pending(self, transfer: Any, call: Callable[[PendingRequest], T | None]) -> T | None:
        # It is entered in `_pending` first, because another thread may answer before `call` returns.
        pending = PendingRequest(transfer, self._pending)
        try:
            result = call(pending)
        except BaseException:
            pending.close()
            raise
        if result is not None:
            pending.close()
        return result

    def _on_ioctl(self, native: Any) -> int:
        found = self._files[native.token]
        observed = self.attended.of(native.token) if self._is_attended else None
        if native.data_size or native.out_size:
            if native.cmd == FILE_NUMBER and found.opened.file.kvm_tracks:
                return _reply_number(native)  # it is no client's call, so nobody is told
            return self._sized_ioctl(found.opened, observed or found.opened.file, native)
        # The pump has asked the file, which left it to a thread that may wait.
        call = native.cmd, native.arg, native.tid
        left = self.attended.take_left()
        deferred = self._defer(native, found.submit)
        if callable(left):
            deferred.start(lambda: finish_ioctl(left))
        elif left is not None:
            deferred.go_on(held_ioctl(left))
        elif observed is not None:
            deferred.start(lambda: finish_ioctl(partial(observed.ioctl, *call)))
        else:
            deferred.start(lambda: finish_ioctl(partial(waiting_ioctl, found.opened.file, *call)))
        return int(lib.LANE_DEFERRED)

    def _sized_ioctl(self, opened: Opened, file: LaneFile | Observed, native: Any) -> int:
        data = ffi.buffer(native.data, native.data_size)[:] if native.data_size else b""
        call = SizedIoctl(native.cmd, native.tid, data)
        if opened.submit is not None:
            answer = partial(finish_sized, partial(file.sized_ioctl, call), call, native.out_size)
            self._defer(native, opened.submit).start(answer)
            return int(lib.LANE_DEFERRED)
        result = file.sized_ioctl(call)
        if not isinstance(result, int):
            held = held_sized(result, call, native.out_size)
            self._defer(native, self._threads.submit).go_on(held)
            return int(lib.LANE_DEFERRED)
        reply = call.reply[: native.out_size]
        ffi.memmove(native.out, reply, len(reply))
        native.out_size = len(reply)
        return result

    def _defer(self, native: Any, submit: Submit) -> DeferredIoctl:
        """An ioctl that another thread answers, with the reference to its file."""
        return DeferredIoctl(self._deferred, native.unique, native.tid, submit, native.handle)

    def _on_poll(self, token: int, handle: int) -> int:
        file = self._files[token].opened.file
        return file.begin_poll(handle) if isinstance(file, DeferringFile) else file.poll()

    def _on_interrupt(self, unique: int, client: int) -> None:
        """`client` is the thread whose ioctl a retired pump is serving as this request, or 0."""
        pending = self._pending.get(unique)
        if pending is not None:
            pending.interrupt()
            return
        deferred = self._deferred.get(unique)
        if deferred is not None and (deferred.interrupt() or not isinstance(deferred, DeferredIoctl)):
            return
        if tid := client or (0 if deferred is None else deferred.tid):
            end_if_killed(unique, tid)

    def _on_release(self, token: int) -> None:
        observed = self.attended.of(token) if self._is_attended else None
        found = self._files.pop(token)
        self.attended.forget(token)
        (observed or found.opened.file).release()


def _failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> int:
    return _errno_of(error)


def _failed_poll(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> int:
    _errno_of(error)
    return select.POLLERR


def _failed_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _errno_of(error)


_FAILED = {"poll": _failed_poll, "interrupt": _failed_quietly, "release": _failed_quietly}
"""What a handler that has raised answers, where that is no errno."""


def _reply_number(native: Any) -> int:
    """FILE_NUMBER: the token of the open file."""
    ffi.memmove(native.out, native.token.to_bytes(8, "little"), 8)
    native.out_size = 8
    return 0


def _errno_of(error: BaseException) -> int:
    """The negative errno that a failed handler answers with."""
    return -errno_of(error)
