# SPDX-License-Identifier: Apache-2.0
"""The state of a device as data, which a client takes from one device and gives to another (migration).

A model migrates if it is derived from :class:`Migrates`. The client stops the device (STOP), reads its state
from a stream (STOP_COPY), or writes that of another device to one (RESUMING), and has it run again (RUNNING).

State: a :class:`Migration` is under the device's lock; a stream has a lock of its own, which is taken after
that, and nobody holds for long.
Source: <linux/vfio.h> (enum vfio_device_mig_state, "device_state transitions").
"""

import errno
import threading
from enum import IntEnum

REGISTERS_STATE = 16 << 20
"""The bytes that a client can write as the state of a device, besides those of its regions."""


class DeviceState(IntEnum):
    """What a device that migrates does (VFIO_DEVICE_STATE_*)."""

    ERROR = 0
    """A change has failed: only a reset helps."""
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    """It is stopped, and its state can be read."""
    RESUMING = 4
    """It is stopped, and another state can be written."""


class Migrates:
    """Mixed into a model: its devices migrate. Both methods run under the device's lock; the device is
    stopped, and no task of it runs."""

    __slots__ = ()

    def save_state(self) -> bytes:
        """For models: all that :meth:`load_state` needs, in a format of the model's own."""
        raise NotImplementedError

    def load_state(self, state: bytes) -> None:
        """For models: become what :meth:`save_state` of another device has saved. Check every byte: a client
        may write anything. Raises ValueError for a state that is none."""
        raise NotImplementedError


class StateStream:
    """What is read or written through one descriptor. Any thread."""

    __slots__ = ("_at", "_data", "_ended", "_limit", "_lock", "writable")

    def __init__(self, data: bytes | None = None, limit: int = REGISTERS_STATE) -> None:
        """``data`` is the state to read; None: one of at most ``limit`` bytes is to be written."""
        self._lock = threading.Lock()
        self.writable = data is None
        self._data = bytearray(data or b"")
        self._at, self._limit = 0, limit
        self._ended = False

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end. Raises ``OSError``: EBADF for a stream that is written, ENODEV
        after :meth:`end`."""
        with self._lock:
            self._check(writes=False)
            taken = bytes(self._data[self._at : self._at + size])
            self._at += len(taken)
            return taken

    def write(self, data: bytes) -> int:
        """Add bytes. Raises ``OSError``: EBADF for a stream that is read, ENOMEM for more than its
        limit, ENODEV after :meth:`end`."""
        with self._lock:
            self._check(writes=True)
            if len(self._data) + len(data) > self._limit:
                raise OSError(errno.ENOMEM, f"a state of more than {self._limit} bytes")
            self._data += data
            return len(data)

    def end(self) -> bytes:
        """The device has left the state that the stream belongs to. Returns what was written."""
        with self._lock:
            self._ended, data = True, bytes(self._data)
            self._data = bytearray()
            return data

    def _check(self, writes: bool) -> None:
        if writes != self.writable:
            raise OSError(errno.EBADF, "the state of a device is either read or written")
        if self._ended:
            raise OSError(errno.ENODEV, "the device has left that state")


class Migration:
    """Where a device is. Its ``stream`` belongs to STOP_COPY or RESUMING."""

    __slots__ = ("state", "stream")

    def __init__(self) -> None:
        self.state = DeviceState.RUNNING
        self.stream: StateStream | None = None

    def end_stream(self) -> bytes:
        """The device leaves its state. Returns what was written to the stream."""
        stream, self.stream = self.stream, None
        return b"" if stream is None else stream.end()
