# SPDX-License-Identifier: Apache-2.0
"""The interface that open files of the device lane implement; ioctl_shim.lane calls it.

Methods run on the pump thread unless they say otherwise.  A read or write must not wait there: if it has to
wait, it becomes a `PendingRequest`, which any thread may answer later.  Source: <linux/fuse.h> (FUSE_READ,
FUSE_WRITE, FUSE_POLL, FUSE_INTERRUPT, FUSE_NOTIFY_POLL).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from ioctl_shim._native import ffi, lib

log = logging.getLogger(__name__)
T_co = TypeVar("T_co", covariant=True)
_WRITTEN = struct.Struct("=II")
"""struct fuse_write_out"""
_ERRNO_END = 512
"""<linux/errno.h>: the errnos from here on are for use within the kernel."""
READABLE, WRITABLE = select.POLLIN | select.POLLRDNORM, select.POLLOUT | select.POLLWRNORM
"""Answers to poll(2)."""
ALWAYS_READY = READABLE | WRITABLE


@dataclass(slots=True)
class SizedIoctl:
    """One ioctl whose number has a size: `data` is what the kernel copied in; set `reply` to copy out."""

    cmd: int
    tid: int
    data: bytes
    reply: bytes = b""


def answer_of(error: OSError) -> int:
    """The errno that a client gets for `error`: EIO if it has none, or one from 512 on, which the kernel does
    not accept."""
    return error.errno if error.errno and 0 < error.errno < _ERRNO_END else errno.EIO


def errno_of(error: BaseException) -> int:
    """The errno that a failed handler answers with.  An exception that is no OSError is a bug of the handler:
    it is EIO, and is logged."""
    if isinstance(error, OSError) and error.errno:
        return answer_of(error)
    log.error("device lane: a handler failed", exc_info=error)
    return errno.EIO


class LaneFile(Protocol):
    """One open file of the device lane.  All methods run on a pump, except an `ioctl` that was left to a
    thread that may wait.  Two calls can be under way at once: a client that holds one up does not hold up the
    lane.
    They raise OSError with the errno that the client gets.  Any other exception is EIO, for that call
    alone."""

    rows: Any
    """The ioctls whose struct the pump fetches, as a struct lane_rows (see ioctl_shim.abi), or None."""

    kvm_tracks: bool
    """Whether KVM tracks such files for virtual machines.  Then FILE_NUMBER gives the number of the
    open file."""

    def read(self, offset: int, size: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> int: ...
    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None: ...
    def sized_ioctl(self, call: SizedIoctl) -> int: ...
    def poll(self) -> int: ...
    def release(self) -> None: ...


class Transfer(NamedTuple):
    """A read or write that the pump has begun: struct lane_transfer of native/lane.cdef."""

    unique: int
    offset: int
    size: int
    flags: int
    tid: int


class Later(Protocol[T_co]):
    """A call that is held up (ioctl_shim.heldcalls)."""

    def wait(self, ready: Callable[[], None]) -> None:
        """Have `ready` called once when the call may go on, or is interrupted: on any thread, also at once.
        `ready` waits for nothing."""

    def interrupt(self) -> bool:
        """The client got a signal: the call may go on, and fails with EINTR.  False if it was going on
        already.  Any thread."""

    @property
    def prompt(self) -> bool:
        """Whether `finish` waits for nothing, because it does not make the call.  Once `ready` is called."""

    def finish(self, error: OSError | None = None) -> T_co:
        """Make the rest of the call.  Raises `error`, or else OSError as the call.  On a thread that may
        wait."""


class Observed(Protocol):
    """The calls of one open file while somebody attends to them.  It makes the calls of the file itself, on
    the thread that would make them otherwise, and tells of them.  Errors as those of LaneFile.

    `made` is what the pump has made by itself, as it does when nobody observes: the bytes read or the number
    written, or a negative errno.  None for an access that is still to be made."""

    def steer_read(self, offset: int, size: int, tid: int) -> Later[bytes] | None:
        """A read, on a pump, while somebody steers calls.  None if it is not steered: then it goes on as if
        nobody did."""

    def steer_write(self, offset: int, data: bytes, tid: int) -> Later[int] | None:
        """The same for a write."""

    def read(self, offset: int, size: int, tid: int, made: bytes | int | None) -> bytes: ...
    def write(self, offset: int, data: bytes, tid: int, made: int | None) -> int: ...

    def begin_ioctl(
        self, cmd: int, arg: int, tid: int, slot: int
    ) -> int | Later[int] | Callable[[], int] | None:
        """An ioctl without a size, on the pump of `slot`.  Returns the result; or what holds it up; or what a
        thread that may wait is to call to finish it.  None: that thread calls `ioctl`."""

    def ioctl(self, cmd: int, arg: int, tid: int) -> int | Later[int]:
        """An ioctl without a size, on a thread that may wait."""

    def sized_ioctl(self, sized: SizedIoctl) -> int | Later[int]: ...
    def release(self) -> None: ...


class RegionAccess(Protocol):
    """Reads and writes by region, for a file whose regions are at offset index << LANE_REGION_SHIFT.

    Pump thread; errors as those of LaneFile."""

    def read(self, index: int, offset: int, size: int) -> bytes: ...
    def write(self, index: int, offset: int, data: bytes) -> int: ...


class InodeAttr(NamedTuple):
    """The inode behind a name: struct lane_name of native/lane.cdef.

    Times are in nanoseconds. All three times of the inode are `ctime_ns`. The kernel may cache the attributes
    for `timeout_ns`, and that the name stands for this inode for `name_ns`."""

    inode: int
    mode: int
    nlink: int
    size: int
    uid: int
    gid: int
    ctime_ns: int
    timeout_ns: int
    name_ns: int


class InodeOperations(Protocol):
    """Lookups, stats, links and reads of attributes, on the pump thread.

    A method returns None to leave the request to pyfuse3.  Raises OSError with the errno the client gets."""

    def lookup(self, parent_inode: int, name: bytes) -> InodeAttr | None: ...
    def stat(self, inode: int) -> InodeAttr | None: ...
    def readlink(self, inode: int) -> bytes | None: ...
    def show(self, inode: int) -> bytes | None: ...


class PendingRequest:
    """A read or write that is answered later, from any thread.  `size` is the bytes to read, or written.

    Only the first answer is sent.  A later one is dropped, and its method returns False.
    """

    __slots__ = ("_interrupted", "_open", "nonblocking", "offset", "size", "tid", "unique")

    def __init__(self, transfer: Transfer | Any, open_: dict[int, PendingRequest]) -> None:
        self.unique: int = transfer.unique
        self.offset: int = transfer.offset
        self.size: int = transfer.size
        self.tid: int = transfer.tid
        self.nonblocking = bool(transfer.flags & os.O_NONBLOCK)
        self._open = open_
        self._interrupted: Callable[[], object] | None = None
        open_[self.unique] = self

    def when_interrupted(self, call: Callable[[], object]) -> None:
        """Have `call` run on the pump thread when the client gets a signal.  It must make sure that an answer
        is sent: until then not even SIGKILL ends the client.  Set it before the request is left open."""
        self._interrupted = call

    def interrupt(self) -> None:
        """The client got a signal.  Pump thread."""
        if self._interrupted is not None:
            self._interrupted()

    def read(self, data: bytes) -> bool:
        """Answer a read with `data`, cut to the size that the client has room for.  Raises TypeError, with
        nothing sent, for what is no bytes."""
        return self._send(0, data[: self.size])

    def written(self, count: int) -> bool:
        """Answer a write: `count` bytes were written."""
        return self._send(0, _WRITTEN.pack(count, 0))

    def fail(self, error: int) -> bool:
        """Answer with an errno."""
        return self._send(-error, b"")

    def close(self) -> bool:
        """Take over the answer: the caller of this must send it.  False when it has been sent already."""
        return self._open.pop(self.unique, None) is not None

    def _send(self, error: int, data: bytes) -> bool:
        answer = ffi.from_buffer(data)  # first: what is no bytes raises, and the caller can still answer
        return self.close() and lib.lane_send(self.unique, error, answer, len(answer)) == 0


class PlainFile:
    """A base for LaneFiles.  Each operation fails as it does for a file that lacks the operation."""

    __slots__ = ()
    rows: Any = None
    kvm_tracks = False

    def read(self, offset: int, size: int) -> bytes:
        raise OSError(errno.EINVAL, "not readable")

    def write(self, offset: int, data: bytes) -> int:
        raise OSError(errno.EINVAL, "not writable")

    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None:
        """Answer an ioctl whose number has no size, as all VFIO ioctls.

        `on_pump` is the slot of the pump that calls, 1 or more.  None leaves the ioctl to a thread that may
        wait, and is allowed on a pump only.  That thread calls this again with an `on_pump` of 0.
        """
        raise OSError(errno.ENOTTY, f"ioctl {cmd:#x}")

    def sized_ioctl(self, call: SizedIoctl) -> int:
        """Answer an ioctl whose data the kernel copies."""
        raise OSError(errno.ENOTTY, f"ioctl {call.cmd:#x}")

    def poll(self) -> int:
        return ALWAYS_READY

    def release(self) -> None:
        return None


class DeferringFile(PlainFile):
    """A base for files whose reads and writes may be answered later, and that can wake pollers."""

    __slots__ = ()

    def begin_read(self, pending: PendingRequest) -> bytes | None:
        """Begin a read.  Returns the data, or None when other code will answer `pending`.  Raises OSError.
        Pump thread."""
        raise OSError(errno.EINVAL, "not readable")

    def begin_write(self, pending: PendingRequest, data: bytes) -> int | None:
        """Begin a write.  Returns the bytes written, or None as `begin_read`.  Raises OSError.  Pump
        thread."""
        raise OSError(errno.EINVAL, "not writable")

    def begin_poll(self, handle: int) -> int:
        """The events that are ready now.  If there are none, the file calls `wake_poll(handle)` as soon as
        there may be some.  A `handle` of 0 means that nobody waits.  Pump thread."""
        return ALWAYS_READY


def wake_poll(handle: int) -> None:
    """Make clients that poll the file with this handle ask again.  Any thread; it does not wait."""
    lib.lane_wake_poll(handle)
