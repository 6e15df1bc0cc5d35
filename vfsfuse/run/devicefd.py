# SPDX-License-Identifier: Apache-2.0
"""VFIO_GROUP_GET_DEVICE_FD for a program of `vfsfuse run`: the supervisor opens the device and hands it over.

A FUSE server cannot put a descriptor into its client.  The supervisor can: it copies the client's own group
file, asks the server for the device on that copy (vfsfuse/vfio/handover.py), opens the file that the server
offers, and injects the descriptor.  So a client gets what its own open group file allows, and nothing else.

The program's pointer and descriptors are hostile.  Each call has a thread of its own, which they may hold up;
no lock is held meanwhile.  Source: include/uapi/linux/vfio.h, seccomp_unotify(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
import threading
import traceback
from collections.abc import Iterator

from ioctl_shim.abi import PREPARE_DEVICE
from ioctl_shim.client import Caller
from ioctl_shim.seccomp import SeccompListener, TrappedCall, file_id

_NAME_BYTES = 256
_PREPARE = struct.Struct(f"{_NAME_BYTES}sIxxxxQ")  # struct vfsfuse_prepare_device


class _NotOurs(Exception):
    """The kernel is to carry the call out: it is on no group of this lab, or fails in a way that the server
    tells best."""


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


class Broker:
    """Answers the calls that `listener` catches, with devices of the lab whose root directory is `lab_fd`.
    Any thread, several at once."""

    def __init__(self, listener: SeccompListener, lab_fd: int) -> None:
        self._listener = listener
        self._lab_device = file_id(lab_fd).device
        self._nodes = os.open("dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=lab_fd)

    def answer(self, call: TrappedCall) -> None:
        """Answer one call.  A caller that dies meanwhile is no error.  Never raises."""
        with contextlib.suppress(FileNotFoundError):
            try:
                # All that we opened is closed by now: the caller may go on to calls that find a file in use.
                self._listener.succeed(call, self._device_fd(call))
            except _NotOurs:
                self._listener.proceed(call)
            except OSError as error:
                self._listener.fail(call, error.errno or errno.EIO)
            except Exception:
                traceback.print_exc(file=sys.stderr)
                self._listener.fail(call, errno.EIO)

    def _device_fd(self, call: TrappedCall) -> int:
        """The number of a new descriptor in the caller."""
        if not self._is_ours(f"/proc/{call.tid}/fd/{call.fd}"):
            raise _NotOurs
        name = _name(call)  # may be held up, and so comes before we hold a file of the caller's
        with self._group(call) as group:
            token = _prepare(group, name, call.tid)
        self._listener.check(call)  # the less we do for the dead, the sooner what they had is free
        try:
            with _closing(self._open(f"vfio/.device-{token}")) as device:
                return self._listener.install_fd(call, device)
        except OSError as error:
            if error.errno == errno.EMFILE:  # the caller goes on, perhaps to calls that find a device in use
                file_id(self._nodes, ask=True)  # by the time of this answer the server has released it
            raise

    def _is_ours(self, file: int | str) -> bool:
        """Whether a file is of this lab.  Asks no file system: it may be one whose server never answers."""
        try:
            return file_id(file).device == self._lab_device
        except OSError:
            return False

    @contextlib.contextmanager
    def _group(self, call: TrappedCall) -> Iterator[int]:
        """A copy of the caller's descriptor.  It keeps the group in use, also after the caller's death.

        Another thread of the program may have put another file under the number.  If that is no file of this
        lab, close(2) may never return, and so is left to a thread that may be lost.
        """
        copy = self._listener.borrow(call)
        if not self._is_ours(copy):
            threading.Thread(target=os.close, args=(copy,), daemon=True).start()
            raise _NotOurs
        try:
            self._listener.check(call)
            yield copy
        finally:
            os.close(copy)

    def _open(self, name: str) -> int:
        return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._nodes)


def _prepare(group: int, name: bytes, tid: int) -> int:
    """The token of the device `name` for the client `tid`, which `group` is a copy of a descriptor of."""
    argument = bytearray(_PREPARE.pack(name, tid, 0))
    try:
        fcntl.ioctl(group, PREPARE_DEVICE, argument)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        raise _NotOurs from None  # no group: the server answers the call on this file with an errno
    return int(_PREPARE.unpack(argument)[-1])


def _name(call: TrappedCall) -> bytes:
    """The device's name, from the caller's memory."""
    try:
        name = Caller(call.tid).read_string(call.arg)
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.EINVAL):
            raise _NotOurs from None  # an errno of the descriptor comes before that of the pointer
        raise
    if len(name) >= _NAME_BYTES:
        raise _NotOurs  # no device has a name this long
    return name
