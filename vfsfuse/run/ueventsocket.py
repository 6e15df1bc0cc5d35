# SPDX-License-Identifier: Apache-2.0
"""A socket of NETLINK_KOBJECT_UEVENT in the network namespace of a program of `vfsfuse run --udev`.

Linux sends an event to the listeners of a network namespace as its own when root of that namespace asks for
it: by a netlink request whose payload is the event, without SEQNUM, which Linux adds.  So programs that trust
the kernel alone trust these events.

Made by the process that becomes the program, used by the relay's thread in the supervisor, which lives in
another network namespace.  Source: netlink(7), lib/kobject_uevent.c (Linux 4.18), netdevice(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator

KERNEL_GROUP, UDEV_GROUP = 1, 2
"""The multicast groups of events: from the kernel, and from udev once it has dealt with them."""

_PROTOCOL = 15  # NETLINK_KOBJECT_UEVENT
_NLMSGHDR = struct.Struct("=IHHII")
_ERROR_AT = _NLMSGHDR.size
_REQUEST, _FIRST_TYPE, _ERROR_TYPE = 1, 0x10, 2
_LARGEST = 1 << 16
_SIOCGSKNS = 0x894C
_SO_RCVBUFFORCE = 33
_ROOM = 8 << 20
"""Bytes of events that may wait for the relay, where the system allows it."""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("=16sh22x")


class OtherNamespace(Exception):
    """The socket is in the network namespace of this process, where events must not be sent."""


def open_socket() -> socket.socket:
    """A socket in the caller's network namespace.  It hears what the kernel tells.  Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL)
    for option, room in ((socket.SO_RCVBUF, _ROOM), (_SO_RCVBUFFORCE, _ROOM)):
        with contextlib.suppress(PermissionError):  # an ordinary user gets what net.core.rmem_max allows
            made.setsockopt(socket.SOL_SOCKET, option, room)
    made.bind((0, KERNEL_GROUP))
    return made


def raise_loopback() -> None:
    """Set the interface lo of the caller's network namespace up.  Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


class UeventSocket:
    """Sends the events of a lab into the network namespace of `made`, and hears those of the kernel there."""

    def __init__(self, made: socket.socket) -> None:
        """Raises OtherNamespace unless the socket is in a network namespace that this process is not in,
        OSError when that cannot be told."""
        if _namespace_of(made) == _id(os.stat("/proc/self/ns/net")):
            raise OtherNamespace
        self._socket = made

    def fileno(self) -> int:
        """Readable when the kernel has told something."""
        return self._socket.fileno()

    def send_as_kernel(self, event: bytes) -> None:
        """Have the kernel send `event`, which has no SEQNUM, to all its listeners, also to this socket.  None
        of them can hold it up.  Raises OSError."""
        header = _NLMSGHDR.pack(_NLMSGHDR.size + len(event), _FIRST_TYPE, _REQUEST, 0, 0)
        self._socket.sendto(header + event, (0, 0))

    def send_as_udev(self, message: bytes) -> None:
        """Send `message` to the listeners of udev.  None of them can hold it up.  Raises OSError."""
        with contextlib.suppress(ConnectionRefusedError):  # nobody listens, in old kernels
            self._socket.sendto(message, (0, UDEV_GROUP))

    def heard(self) -> Iterator[bytes]:
        """The datagrams of the kernel that have come.  It waits for none.  Events may have been lost before:
        that goes into the log."""
        while True:
            try:
                data, (sender, groups) = self._socket.recvfrom(_LARGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                _log(f"an event is lost: {error.strerror}")
                if error.errno != errno.ENOBUFS:
                    return
                continue
            if sender == 0 and groups == KERNEL_GROUP:
                yield data
            elif sender == 0 and groups == 0:
                _tell_refusal(data)


def _tell_refusal(data: bytes) -> None:
    """Log the kernel's answer to a request that it refuses."""
    if len(data) >= _ERROR_AT + 4 and _NLMSGHDR.unpack_from(data)[1] == _ERROR_TYPE:
        (code,) = struct.unpack_from("=i", data, _ERROR_AT)
        if code:
            _log(f"the kernel does not send an event: {os.strerror(-code)}")


def _log(message: str) -> None:
    print(f"vfsfuse: run: udev: {message}", file=sys.stderr, flush=True)


def _namespace_of(made: socket.socket) -> tuple[int, int]:
    fd = fcntl.ioctl(made.fileno(), _SIOCGSKNS)
    try:
        return _id(os.fstat(fd))
    finally:
        os.close(fd)


def _id(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
