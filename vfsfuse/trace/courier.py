# SPDX-License-Identifier: Apache-2.0
"""The program that reads the file `trace` for a TraceReader, as a process of its own.

A process that waits for a FUSE server which never answers cannot even be killed.  So this one waits, and the
reader only waits for it, as long as it likes.  It is run by its path and imports nothing of ours.

    courier.py SOCKET KIND          the options come first on the socket, as a frame

KIND is "path", followed by a mountpoint or the path of the file, or "fd", followed by the descriptor.
Commands on the socket are one byte: WAIT asks for what there is as soon as there is something, DRAIN for what
there is now.  Answers are frames of 5 bytes, a kind and a length, and the content: LINES, DRAINED (the end of
the answer to DRAIN, and the answer to the options), ENDED (the lab has ended) or FAILED (an errno in decimal
digits).

State: one thread; it has none.
"""

import errno
import os
import select
import socket
import struct
import sys

WAIT, DRAIN = b"w", b"d"
LINES, DRAINED, ENDED, FAILED = range(4)
FRAME = struct.Struct("=BI")
CHUNK = 1 << 17
_OVER = (errno.ENOTCONN, errno.ENODEV, errno.ECONNABORTED)
"""What a read fails with when the mount's server has ended."""


def _read(file: int) -> bytes | None:
    """What there is to read, None for nothing.  Empty when the lab has ended."""
    try:
        return os.read(file, CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in _OVER:
            return b""
        raise


def _send(channel: socket.socket, kind: int, content: bytes = b"") -> None:
    channel.sendall(FRAME.pack(kind, len(content)) + content)


def _pass_on(channel: socket.socket, file: int) -> bool | None:
    """Send what there is.  None when there was nothing, False when the lab has ended."""
    data = _read(file)
    if data is None:
        return None
    _send(channel, LINES if data else ENDED, data)
    return bool(data)


def _serve(channel: socket.socket, file: int) -> None:
    """Follow commands until the reader is gone, or the lab has ended."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    waits = False
    while True:
        for fd, _ in poll.poll():
            if fd == file:
                came = _pass_on(channel, file)
                if came is None:
                    continue
                waits = False
                poll.unregister(file)
                if not came:
                    return
                continue
            command = channel.recv(1)
            if not command:
                return
            if command == DRAIN:
                while came := _pass_on(channel, file):
                    pass
                if came is not None:
                    return
                _send(channel, DRAINED)
            elif not waits:
                waits = True
                poll.register(file, select.POLLIN)


def _open_path(place: str) -> int:
    """The file `trace` of a mountpoint, or the file itself."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(f"{place}/trace", flags)
    except NotADirectoryError:
        return os.open(place, flags)


def _open(channel: socket.socket, kind: str, place: str) -> int:
    """The file, opened and told the options."""
    size = FRAME.unpack(channel.recv(FRAME.size, socket.MSG_WAITALL))[1]
    options = channel.recv(size, socket.MSG_WAITALL)
    file = int(place) if kind == "fd" else _open_path(place)
    os.set_blocking(file, False)
    if options:
        os.write(file, options)
    _send(channel, DRAINED)
    return file


def main(number: str, kind: str, place: str) -> None:
    """Serve the reader on socket `number`."""
    with socket.socket(fileno=int(number)) as channel:
        try:
            _serve(channel, _open(channel, kind, place))
        except (BrokenPipeError, ConnectionError):
            return  # the reader is gone
        except OSError as error:
            _send(channel, FAILED, str(error.errno).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
