# SPDX-License-Identifier: Apache-2.0
"""The device lane in Python: native/pump.c calls it once for each request that it cannot answer itself.

The pump owns the file table: open and release both run there.  Ioctls that may wait, for a client or for
this mount, run on threads of `CallThreads`; they only look tokens up.  A pump that is held up nevertheless is
replaced by another thread (native/pump.c), so two pumps may be in a handler at once; whatever they share has
a lock.  cffi binds `extern "Python"` functions once a process, so there is one Lane a process.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from ioctl_shim import pumped
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import FILE_NUMBER
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.heldcalls import (
    Answer,
    Deferred,
    DeferredIoctl,
    Held,
    Submit,
    end_if_killed,
    hold_request,
)
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
    Transfer,
    errno_of,
    wake_poll,
)

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
WHOLE: int = lib.LANE_WHOLE
_UNMOUNTING = (errno.ENODEV, errno.EBADF, errno.ENOTCONN)
OBSERVED: int = lib.LANE_OBSERVED
STEERED: int = lib.LANE_STEERED
"""Bits of `Lane.attend`."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """An open(2) of a device inode: `nodeid` is the inode number, `flags` the open flags (O_*).  `tid` is the
    client's thread; it `leads` if it is the first one of its process.  A pump must not wait: `on_pump`."""

    nodeid: int
    flags: int
    tid: int
    uid: int
    gid: int
    leads: bool
    on_pump: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """The answer to an open: the file, and the parts of it that the pump may answer or map by itself.

    If `regions` is set, it serves the reads and writes. A `stream` has no position: it cannot seek, and it
    has no pread. `submit` runs the ioctls that the file leaves to a thread that may wait, and all ioctls that
    have a size. None means the threads of the lane for the former, and the pump for the latter. `shut` says
    how long reads and writes are refused; None for never."""

    file: LaneFile
    memory: pumped.PumpRegions | None = None
    region: int = WHOLE
    backing_id: int = 0
    stream: bool = False
    regions: RegionAccess | None = None
    submit: Submit | None = None
    shut: Shut | None = None


class Shut:
    """Whether the reads and writes of one open file are refused with EINVAL, which the pump does by itself.
    The file keeps it."""

    __slots__ = ("native",)

    def __init__(self, shut: bool) -> None:
        self.native: Any = ffi.new("uint32_t *", shut)

    def open(self) -> None:
        """Refuse them no longer. Any thread."""
        self.native[0] = 0


Opener = Callable[[OpenRequest], Opened | None]
"""Answers opens.  Raises OSError as open(2) does.  On a pump it may return None: then a thread that may wait
calls it again."""
SteeredOpener = Callable[[OpenRequest], Opened | Later[Opened] | None]
"""As Opener.  On a thread that may wait it may return what holds the open up."""


def open_backing(fd: int) -> int:
    """Register `fd` with the kernel as a backing file.  Returns an id above 0, or 0 when the kernel cannot do
    that (no CAP_SYS_ADMIN in the initial namespace, or a kernel before 6.9).  Raises OSError for a failure
    that may pass, such as ENOMEM.  Any thread, once mounted."""
    return _id_or_error(lib.lane_backing_open(fd))


def check_open() -> None:
    """Raise OSError if a file that must not be mapped cannot be opened now.  Any thread, once mounted."""
    _id_or_error(lib.lane_can_forbid())


def _id_or_error(result: int) -> int:
    if result < 0:
        raise OSError(-result, f"backing file: {os.strerror(-result)}")
    return result


def is_being_written(inode: int) -> bool:
    """Whether a client has the attribute of this inode open for writing.  It may be true for another
    attribute's client, too.  Any thread."""
    return bool(lib.lane_is_being_written(inode))


def files_are_gone(block: int) -> None:
    """No attribute of this block (kernfs.tree) exists any more: an open of one is ESTALE.  Any thread."""
    lib.lane_files_are_gone(block)


def forget_stats(inodes: Collection[int]) -> None:
    """Make the kernel ask again for the stat of these inodes (FUSE_NOTIFY_INVAL_INODE), which waits for
    nobody.  Any thread.  Names are never forgotten in this way: docs/architecture.md, "The tree"."""
    if inodes:
        error = lib.lane_forget_stats(list(inodes), len(inodes))
        if error and -error not in _UNMOUNTING:
            log.warning("invalidation failed: %s", os.strerror(-error))


def close_backing(backing_id: int) -> None:
    """Unregister the backing file.  Files that were opened with it keep it."""
    lib.lane_backing_close(backing_id)


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """The Python objects that an open file's `struct lane_file` points at; it keeps them until the
    release."""

    opened: Opened
    nodeid: int
    called: tuple[Callable[..., object], ...]
    submit: Submit


Observing = Callable[[Opened, int], Observed | None]
"""Gives the calls of an open file, with the number of its inode, for those who observe it.  None for a file
of which nothing is told."""


SteerStore = Callable[[int, bytes, int], Callable[[PendingRequest], None] | None]
"""Is asked on a pump for each store of an attribute while somebody steers calls: its inode, the data, the
client's thread.  Gives what begins a store that is steered, and None for any other."""


class Lane:
    """The callbacks of the pump, which run on its thread.  `threads` make the calls that may wait."""

    def __init__(
        self, opener: SteeredOpener, names: InodeOperations, threads: CallThreads, observing: Observing
    ) -> None:
        """While somebody attends (`attend`), calls on open files are those of what `observing` gives."""
        self._opener, self._threads, self._observing = opener, threads, observing
        self.steer_store: SteerStore | None = None
        self._called = (
            *(_errno_of, names.show, names.lookup, names.stat, names.readlink),
            *(self._observed_read, self._observed_write, self._observed_ioctl),
            *(self._steered_read, self._steered_write, self._steered_store),
        )
        self._observed: dict[int, Observed | None] = {}
        """By token, for files with calls that were observed."""
        self._is_attended = False
        self._left: dict[int, Later[int] | Callable[[], int]] = {}
        """By the pump's thread, the ioctl that it has begun and is about to leave to another one."""
        self._files: dict[int, _OpenFile] = {}
        self._tokens = itertools.count(1)
        self._pending: dict[int, PendingRequest] = {}
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
        self._files[token] = _OpenFile(opened, request.nodeid, called, submit)
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
        if finish is not None:
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

    # ---- calls on files while somebody attends: native/call.c ----

    def _steered_read(
        self, token: int, unique: int, offset: int, size: int, flags: int, tid: int
    ) -> bool | None:
        """Whether the read is answered here.  None leaves it to the pump."""
        observed = self._observed_of(token)
        later = None if observed is None else observed.steer_read(offset, size, tid)
        if later is None:
            return None
        pending = PendingRequest(Transfer(unique, offset, size, flags, tid), self._pending)
        hold_request(pending, later, pending.read, self._threads.submit)
        return True

    def _steered_write(
        self, token: int, unique: int, offset: int, flags: int, tid: int, data: bytes
    ) -> bool | None:
        """The same for a write."""
        observed = self._observed_of(token)
        later = None if observed is None else observed.steer_write(offset, data, tid)
        if later is None:
            return None
        pending = PendingRequest(Transfer(unique, offset, len(data), flags, tid), self._pending)
        hold_request(pending, later, pending.written, self._threads.submit)
        return True

    def _steered_store(self, unique: int, inode: int, tid: int, data: bytes) -> bool | None:
        """The same for a store of an attribute."""
        begin = None if self.steer_store is None else self.steer_store(inode, data, tid)
        if begin is None:
            return None
        pending = PendingRequest(Transfer(unique, 0, len(data), 0, tid), self._pending)
        try:
            begin(pending)
        except BaseException:
            pending.close()
            raise
        return True

    def _observed_of(self, token: int) -> Observed | None:
        """The calls of an open file to attend to; None for a file of which nothing is told."""
        try:
            return self._observed[token]
        except KeyError:
            found = self._files[token]
            return self._observed.setdefault(token, self._observing(found.opened, found.nodeid))

    def _observed_read(
        self, made: bytes | int | None, token: int, offset: int, size: int, tid: int
    ) -> bytes | None:
        """None leaves it to the pump."""
        observed = self._observed_of(token)
        return None if observed is None else observed.read(offset, size, tid, made)

    def _observed_write(self, made: int | None, token: int, offset: int, tid: int, data: bytes) -> int | None:
        """None leaves it to the pump."""
        observed = self._observed_of(token)
        return None if observed is None else observed.write(offset, data, tid, made)

    def _observed_ioctl(self, token: int, cmd: int, arg: int, tid: int, slot: int) -> int | None:
        """As LaneFile.ioctl on a pump."""
        observed = self._observed_of(token)
        if observed is None:
            return self._files[token].opened.file.ioctl(cmd, arg, tid, slot)
        result = observed.begin_ioctl(cmd, arg, tid, slot)
        if result is None or isinstance(result, int):
            return result
        self._left[threading.get_ident()] = result  # the pump calls _on_ioctl next
        return None

    def _on_ioctl(self, native: Any) -> int:
        found = self._files[native.token]
        observed = self._observed_of(native.token) if self._is_attended else None
        if native.data_size or native.out_size:
            if native.cmd == FILE_NUMBER and found.opened.file.kvm_tracks:
                return _reply_number(native)  # it is no client's call, so nobody is told
            return self._sized_ioctl(found.opened, observed or found.opened.file, native)
        # The pump has asked the file, which left it to a thread that may wait.
        call = native.cmd, native.arg, native.tid
        left = self._left.pop(threading.get_ident(), None)
        deferred = self._defer(native, found.submit)
        if callable(left):
            deferred.start(lambda: _finish_ioctl(left))
        elif left is not None:
            deferred.go_on(_held_ioctl(left))
        elif observed is not None:
            deferred.start(lambda: _finish_ioctl(partial(observed.ioctl, *call)))
        else:
            deferred.start(lambda: _finish_ioctl(partial(_ioctl, found.opened.file, *call)))
        return int(lib.LANE_DEFERRED)

    def _sized_ioctl(self, opened: Opened, file: LaneFile | Observed, native: Any) -> int:
        data = ffi.buffer(native.data, native.data_size)[:] if native.data_size else b""
        call = SizedIoctl(native.cmd, native.tid, data)
        if opened.submit is not None:
            answer = partial(_finish_sized, partial(file.sized_ioctl, call), call, native.out_size)
            self._defer(native, opened.submit).start(answer)
            return int(lib.LANE_DEFERRED)
        result = file.sized_ioctl(call)
        if not isinstance(result, int):
            held = _held_sized(result, call, native.out_size)
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
        observed = self._observed_of(token) if self._is_attended else None
        found = self._files.pop(token)
        self._observed.pop(token, None)
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


def _finish_sized(make: Callable[[], int | Later[int]], call: SizedIoctl, room: int) -> Answer | Held[Answer]:
    """The answer to an ioctl that has a size.  Any thread but the pump's."""
    try:
        result = make()
    except BaseException as error:  # the client waits for an answer, whatever a model raises
        result, call.reply = _errno_of(error), b""
    if not isinstance(result, int):
        return _held_sized(result, call, room)
    return result, call.reply[:room]


def _held_sized(later: Later[int], call: SizedIoctl, room: int) -> Held[Answer]:
    return Held(later, lambda error: _finish_sized(lambda: later.finish(error), call, room))


def _ioctl(file: LaneFile, cmd: int, arg: int, tid: int) -> int:
    """An ioctl on a thread that may wait."""
    result = file.ioctl(cmd, arg, tid, on_pump=0)
    if result is None:
        raise RuntimeError(f"ioctl {cmd:#x} is left to a thread by a thread that may wait")
    return result


def _finish_ioctl(make: Callable[[], int | Later[int]]) -> Answer | Held[Answer]:
    """The answer to an ioctl that its file left to a thread that may wait.  Any thread except the pump's."""
    try:
        result = make()
        if not isinstance(result, int):
            return _held_ioctl(result)
        if result >> 31:
            raise RuntimeError(f"an ioctl returned {result}")
    except BaseException as error:  # the client waits for an answer, whatever a model raises
        result = _errno_of(error)
    return result, b""


def _held_ioctl(later: Later[int]) -> Held[Answer]:
    return Held(later, lambda error: _finish_ioctl(lambda: later.finish(error)))


def _errno_of(error: BaseException) -> int:
    """The negative errno that a failed handler answers with."""
    return -errno_of(error)
