# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a system call lead to in the memory of the recorded program.

All of it is hostile: sizes are bounded, and what cannot be read is empty.  The thread that makes the call is
stopped, others of its process are not.  No state.  Source: <linux/vfio.h>, readv(2), cmsg(3).
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ioctl_shim.abi import Row
from ioctl_shim.client import Caller, peek
from vfsfuse.recording.recording import MOST_STRUCT

GET_DEVICE_FD = "VFIO_GROUP_GET_DEVICE_FD"
_NUMBERS = ("VFIO_GROUP_SET_CONTAINER",)
"""Ioctls that take a number by a pointer."""
_MOST_NAME = 64
_MOST_SEGMENTS = 1024
_MOST_CONTROL = 1 << 16
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_MSGHDR = struct.Struct("=32x2Q8x")
"""struct msghdr: msg_control and msg_controllen."""
_CMSGHDR = struct.Struct("=Q2i")


class Part(NamedTuple):
    """A buffer that a call reads or fills."""

    address: int
    size: int


def descriptor(value: int) -> int:
    """An argument as the number of a descriptor."""
    return (value & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


def string_at(tid: int, address: int) -> str:
    """A path or a name."""
    try:
        return os.fsdecode(Caller(tid).read_string(address))
    except OSError:
        return ""


def struct_at(tid: int, row: Row | None, address: int) -> bytes:
    """What the pointer of an ioctl leads to: the struct with what its size says is behind it, a name, or a
    number.  As vfsfuse.vfio.told reads it in a lab."""
    if row is None or not address:
        return b""
    if not row.struct:
        if row.name == GET_DEVICE_FD:
            return os.fsencode(string_at(tid, address))[:_MOST_NAME]
        return peek(tid, address, 4) if row.name in _NUMBERS else b""
    head = peek(tid, address, row.minsz)
    size = min(int.from_bytes(head[:4], "little"), MOST_STRUCT)
    return (peek(tid, address, size) or head) if head and size > row.minsz else head


def vector_at(tid: int, address: int, count: int) -> list[Part]:
    """The buffers of readv(2) and its like."""
    data = peek(tid, address, 16 * min(count, _MOST_SEGMENTS))
    return [Part(*part) for part in struct.iter_unpack("=2Q", data) if part[1]]


def sent_at(tid: int, address: int) -> list[int]:
    """The descriptors that the message of sendmsg(2) carries."""
    header = peek(tid, address, _MSGHDR.size)
    control, size = _MSGHDR.unpack(header) if header else (0, 0)
    data = peek(tid, control, min(size, _MOST_CONTROL))
    fds: list[int] = []
    at = 0
    while at + _CMSGHDR.size <= len(data):
        size, level, kind = _CMSGHDR.unpack_from(data, at)
        if size < _CMSGHDR.size:
            break
        if (level, kind) == (_SOL_SOCKET, _SCM_RIGHTS):
            numbers = data[at + _CMSGHDR.size : at + size]
            fds.extend(struct.unpack_from(f"={len(numbers) // 4}i", numbers))
        at += (size + 7) & ~7
    return fds
