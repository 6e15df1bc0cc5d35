# SPDX-License-Identifier: Apache-2.0
"""VFIO_GROUP_GET_DEVICE_FD for a program of `vfsfuse run`: the supervisor opens the device and hands it over.

A FUSE server cannot put a descriptor into its client.  The supervisor can: it copies the client's own group
file, asks the server for the device on that copy (vfsfuse/vfio/handover.py), opens the file that the server
offers, and injects the descriptor.  So a client gets what its own open group file allows, and nothing else.

The program's pointer and descriptors are hostile.  Each call has a thread of its own, which they may hold up;
no lock is held meanwhile.  Source: include/uapi/linux/vfio.h, seccomp_unotify(2).
"""

from __future__ import annotations

import errno
import fcntl
import struct

from ioctl_shim.abi import PREPARE_DEVICE
from ioctl_shim.client import Caller
from ioctl_shim.seccomp import SeccompListener, TrappedCall
from vfsfuse.run.labfiles import LabFiles, NotOurs, closing

_NAME_BYTES = 256
_PREPARE = struct.Struct(f"{_NAME_BYTES}sIxxxxQ")  # struct vfsfuse_prepare_device


class DeviceFds:
    """Gives the calls that `listener` catches devices of `files`.  Any thread, several at once."""

    def __init__(self, listener: SeccompListener, files: LabFiles) -> None:
        self._listener, self._files = listener, files

    def __call__(self, call: TrappedCall) -> int:
        """The number of a new descriptor in the caller."""
        self._files.require(call, call.fd)
        name = _name(call)  # may be held up, and so comes before we hold a file of the caller's
        with self._files.copy(call, call.fd) as group:
            token = _prepare(group, name, call.tid)
        self._listener.check(call)  # the less we do for the dead, the sooner what they had is free
        try:
            with closing(self._files.open(f"vfio/.device-{token}")) as device:
                return self._listener.install_fd(call, device)
        except OSError as error:
            if error.errno == errno.EMFILE:  # the caller goes on, perhaps to calls that find a device in use
                self._files.settle()
            raise


def _prepare(group: int, name: bytes, tid: int) -> int:
    """The token of the device `name` for the client `tid`, which `group` is a copy of a descriptor of."""
    argument = bytearray(_PREPARE.pack(name, tid, 0))
    try:
        fcntl.ioctl(group, PREPARE_DEVICE, argument)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        raise NotOurs from None  # no group: the server answers the call on this file with an errno
    return int(_PREPARE.unpack(argument)[-1])


def _name(call: TrappedCall) -> bytes:
    """The device's name, from the caller's memory."""
    try:
        name = Caller(call.tid).read_string(call.arg)
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.EINVAL):
            raise NotOurs from None  # an errno of the descriptor comes before that of the pointer
        raise
    if len(name) >= _NAME_BYTES:
        raise NotOurs  # no device has a name this long
    return name
