# SPDX-License-Identifier: Apache-2.0
"""VFIO_GROUP_GET_DEVICE_FD for a program of `vfsfuse run`: the supervisor opens the device and hands it over.

A FUSE server cannot put a descriptor into its client.  The supervisor can: it asks the server for the
device by the group's inode (vfsfuse/vfio/handover.py), opens the file that the server offers, and injects the
descriptor.  After that it has the server put the device into use.  Owned by the supervisor's only thread.
Source: include/uapi/linux/vfio.h, seccomp_unotify(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
import traceback
from collections.abc import Iterator

from ioctl_shim.abi import CLAIM_DEVICE, PREPARE_DEVICE
from ioctl_shim.client import Caller
from ioctl_shim.seccomp import SeccompListener, TrappedCall

_NAME_BYTES = 256
_PREPARE = struct.Struct(f"Q{_NAME_BYTES}sIxxxxQ")  # struct vfsfuse_prepare_device


class _NotOurs(Exception):
    """The call is not on a group of this lab, or its program is one that we may not look into."""


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


class Broker:
    """Answers the calls that `listener` catches, with devices of the lab whose root directory is `lab_fd`."""

    def __init__(self, listener: SeccompListener, lab_fd: int) -> None:
        self._listener = listener
        self._lab_fd = lab_fd
        self._lab_dev = os.fstat(lab_fd).st_dev
        self._control = self._open(".devices")

    def answer_next(self) -> None:
        """Take one call and answer it.  A caller that dies meanwhile is no error.  Never raises."""
        with contextlib.suppress(FileNotFoundError):
            call = self._listener.receive()
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
        group = _stat(call)
        if group.st_dev != self._lab_dev:
            raise _NotOurs
        name = Caller(call.tid).read_string(call.arg)
        self._listener.check(call)
        token = self._prepare(group.st_ino, name, call.tid)
        with _closing(self._open(f".device-{token}")) as device:
            number = self._listener.install_fd(call, device)
        fcntl.ioctl(self._control, CLAIM_DEVICE, token)  # only now does the caller alone have it
        return number

    def _prepare(self, inode: int, name: bytes, tid: int) -> int:
        if len(name) >= _NAME_BYTES:
            raise OSError(errno.ENODEV, "no device has a name this long")
        argument = bytearray(_PREPARE.pack(inode, name, tid, 0))
        try:
            fcntl.ioctl(self._control, PREPARE_DEVICE, argument)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            raise _NotOurs from None  # no group: the server answers the call on this file with an errno
        return int(_PREPARE.unpack(argument)[-1])

    def _open(self, name: str) -> int:
        return os.open(f"dev/vfio/{name}", os.O_RDWR | os.O_CLOEXEC, dir_fd=self._lab_fd)


def _stat(call: TrappedCall) -> os.stat_result:
    """stat(2) of the caller's file, without a reference to the file."""
    try:
        return os.stat(f"/proc/{call.tid}/fd/{call.fd}")
    except (FileNotFoundError, PermissionError):
        raise _NotOurs from None
