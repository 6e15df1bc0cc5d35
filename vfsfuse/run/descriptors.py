# SPDX-License-Identifier: Apache-2.0
"""Ioctls whose answer has a descriptor, for a program of `vfsfuse run`: the supervisor hands the file over.

A FUSE server cannot put a descriptor into its client.  The supervisor can: it copies the client's own open
file, has the server carry the ioctl out on that copy (vfsfuse/vfio/handover.py), opens the file that the
server offers, and injects the descriptor.  So a client gets what its own open file allows, and nothing else.

GIVING is the table.  An ioctl of another number, or one that gives no descriptor, is the kernel's.

The program's pointer and descriptors are hostile.  Each call has a thread of its own, which they may hold up;
no lock is held meanwhile.  Source: include/uapi/linux/vfio.h and iommufd.h, seccomp_unotify(2).
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import HAND_OVER, HAND_OVER_FORMAT, HANDED_OVER, Kind, LabFlag, Row, row_of
from ioctl_shim.client import Caller
from ioctl_shim.longcalls import has_zeros
from ioctl_shim.seccomp import SeccompListener, TrappedCall
from vfsfuse.run.labfiles import LabFiles, LeftToKernel, closing

_NAME_BYTES = 256
_INT = 4
_HEAD = int(ffi.sizeof("struct vfio_device_feature"))
_SET_STATE = lib.VFIO_DEVICE_FEATURE_SET | lib.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE


@dataclass(frozen=True, slots=True)
class Giving:
    """An ioctl whose answer has a descriptor: in the client's struct at offset `fd_at`, or, without one, as
    what ioctl(2) returns.  `read` gives what the client's pointer leads to.  It raises OSError, and
    LeftToKernel for a call that gives no descriptor or fails."""

    row: Row
    read: Callable[[Caller, int], bytes]
    fd_at: int | None = None
    only: LabFlag = LabFlag.NONE
    """What the lab must have so that the ioctl can give a descriptor at all."""


class Descriptors:
    """Answers the calls of one row of GIVING that `listener` catches, on files of `files`.  Any thread,
    several at once."""

    def __init__(self, giving: Giving, listener: SeccompListener, files: LabFiles) -> None:
        self._giving, self._listener, self._files = giving, listener, files

    def __call__(self, call: TrappedCall) -> int:
        """What the ioctl returns."""
        self._files.require(call, call.fd)
        asked = self._read(call)  # may be held up, and so comes before we hold a file of the caller's
        with self._files.copy(call, call.fd) as file:
            token, data = _hand_over(file, self._giving.row.cmd, asked, call.tid)
        self._listener.check(call)  # the less we do for the dead, the sooner what they had is free
        if not token:
            Caller(call.tid).write(call.arg, data)
            return 0
        try:
            with closing(self._files.open(f"{self._giving.row.gives}{token}")) as file:
                return self._give(call, file, asked, data)
        except OSError as error:
            if error.errno == errno.EMFILE:  # the caller goes on, perhaps to calls that find a device in use
                self._files.settle()
            raise

    def _read(self, call: TrappedCall) -> bytes:
        try:
            return self._giving.read(Caller(call.tid), call.arg)
        except OSError as error:
            if error.errno in (errno.EFAULT, errno.EINVAL):
                raise LeftToKernel from None  # an errno of the descriptor comes before that of the pointer
            raise

    def _give(self, call: TrappedCall, file: int, asked: bytes, data: bytes) -> int:
        """Put `file` into the caller, and `data` and the number where it expects them.

        As on Linux, a caller without room for the descriptor finds its struct unchanged, and one whose struct
        cannot be written gets no descriptor: the struct is written as it was, before anything is given."""
        at = self._giving.fd_at
        if at is None:
            return self._listener.install_fd(call, file)
        caller = Caller(call.tid)
        self._listener.check(call)  # opening took its time: the thread's number may be another's by now
        caller.write(call.arg, asked)
        number = self._listener.install_fd(call, file)
        caller.write(call.arg, data + number.to_bytes(_INT, "little"))
        fcntl.ioctl(file, HANDED_OVER, bytes(_INT))
        return 0


def _hand_over(file: int, cmd: int, asked: bytes, tid: int) -> tuple[int, bytes]:
    """Have the server carry out an ioctl on a copy of a descriptor of the client `tid`: the token of a file,
    0 without one, and the data for the client.  Raises OSError as the ioctl."""
    argument = bytearray(HAND_OVER_FORMAT.pack(cmd, tid, 0, len(asked), asked))
    try:
        fcntl.ioctl(file, HAND_OVER, argument)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        raise LeftToKernel from None  # a file of another kind: the server answers the call with an errno
    _, _, token, size, data = HAND_OVER_FORMAT.unpack(argument)
    return token, data[:size]


def _name(caller: Caller, address: int) -> bytes:
    """The name of a device."""
    name = caller.read_string(address)
    if len(name) >= _NAME_BYTES:
        raise LeftToKernel  # no device has a name this long
    return name


def _struct(row: Row, caller: Caller, address: int) -> bytes:
    """A struct of iommufd.  The server says what is wrong with one of a bad size."""
    size = int.from_bytes(caller.read(address, _INT), "little")
    if size < row.minsz or (size > row.size and not has_zeros(caller, address + row.size, size - row.size)):
        raise LeftToKernel
    return caller.read(address, min(size, row.size))


def _device_state(caller: Caller, address: int) -> bytes:
    """The struct of DEVICE_FEATURE with the data of SET MIG_DEVICE_STATE.  All other features are the
    kernel's: DIRTY_PAGES of a container has the same number, and GET DMA_BUF gives none, because a dma-buf is
    the kernel's to make."""
    head = ffi.from_buffer("struct vfio_device_feature *", caller.read(address, _HEAD))
    data = int(ffi.sizeof("struct vfio_device_feature_mig_state"))
    if head.flags != _SET_STATE or head.argsz < _HEAD + data:
        raise LeftToKernel
    return caller.read(address, _HEAD + data)


def _in_struct(name: str, member: str) -> Giving:
    """An ioctl of iommufd with a descriptor in a member of its struct."""
    row = row_of(Kind.IOMMUFD, name)
    return Giving(row, partial(_struct, row), dict(row.pointer.item.fields)[member].offset)


_DATA_FD = _HEAD + int(ffi.offsetof("struct vfio_device_feature_mig_state", "data_fd"))

GIVING: tuple[Giving, ...] = (
    Giving(row_of(Kind.GROUP, "VFIO_GROUP_GET_DEVICE_FD"), _name),
    _in_struct("IOMMU_FAULT_QUEUE_ALLOC", "out_fault_fd"),
    _in_struct("IOMMU_VEVENTQ_ALLOC", "out_veventq_fd"),
    Giving(row_of(Kind.DEVICE, "VFIO_DEVICE_FEATURE"), _device_state, _DATA_FD, LabFlag.MIGRATES),
)
"""The ioctls whose answer has a descriptor."""
