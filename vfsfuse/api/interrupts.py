# SPDX-License-Identifier: Apache-2.0
"""Interrupts of an open device, as eventfds that the client waits for.

For one thread at a time, but `fileno` may be polled elsewhere.  Source: <linux/vfio.h>
(VFIO_DEVICE_SET_IRQS), eventfd(2).
"""

from __future__ import annotations

import contextlib
import os
import select
from types import TracebackType

from vfsfuse.api.abi import (
    DEVICE_GET_IRQ_INFO,
    DEVICE_SET_IRQS,
    IRQ_DATA_EVENTFD,
    IRQ_DATA_NONE,
    IRQ_MASK,
    IRQ_TRIGGER,
    IRQ_UNMASK,
    call,
)
from vfsfuse.api.files import Files

INDEXES = {"intx": 0, "msi": 1, "msix": 2, "err": 3, "req": 4}
WAIT_SECONDS = 10.0


class Interrupts:
    """The vectors 0 to `count` - 1 of one interrupt index, with an eventfd each.  As a context manager it is
    closed at the end."""

    def __init__(
        self, files: Files, path: str, device: int, index: int | str, count: int | None = None
    ) -> None:
        """`count` None is all vectors that the device has.  Raises KeyError for an unknown name, and OSError
        as the ioctls do: EINVAL for more vectors than there are."""
        self._fds: list[int] = []
        self._files, self._path, self._device = files, path, device
        if isinstance(index, str) and index not in INDEXES:
            raise KeyError(f"there are no interrupts {index} (there is {', '.join(INDEXES)})")
        self.index = INDEXES[index] if isinstance(index, str) else index
        try:
            with files.explained(path):
                if count is None:
                    _, _, count = call(device, DEVICE_GET_IRQ_INFO, "III", 0, self.index, 0)
                self._fds += (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count))
                self._set(IRQ_DATA_EVENTFD | IRQ_TRIGGER, 0, count, *self._fds)
        except BaseException:
            self._close_eventfds()
            raise

    def __len__(self) -> int:
        return len(self._fds)

    def __repr__(self) -> str:
        return f"<Interrupts {self.index}, {len(self)} vectors>"

    def fileno(self, vector: int = 0) -> int:
        """The eventfd of a vector, for poll(2) or another thread."""
        return self._fds[vector]

    def wait(self, vector: int = 0, timeout: float | None = WAIT_SECONDS) -> int:
        """Wait for a vector.  Returns how often it was signalled since it was last asked, 1 or more.

        `timeout` is in seconds; None waits for as long as it takes.  Raises TimeoutError, or LabError if the
        server has ended meanwhile."""
        poll = select.poll()
        poll.register(self._fds[vector], select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            self._files.check()
            raise TimeoutError(f"{self._path}: vector {vector} was not signalled within {timeout:g} seconds")
        return os.eventfd_read(self._fds[vector])

    def take(self, vector: int = 0) -> int:
        """How often a vector was signalled since it was last asked.  Waits for nothing."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self._fds[vector])
        return 0

    def mask(self, vector: int = 0) -> None:
        """Hold a vector back.  Raises OSError as VFIO_DEVICE_SET_IRQS does: only INTx can be masked."""
        self._act(IRQ_MASK, vector)

    def unmask(self, vector: int = 0) -> None:
        """Let a vector through again.  INTx is masked whenever it is signalled."""
        self._act(IRQ_UNMASK, vector)

    def trigger(self, vector: int = 0) -> None:
        """Signal a vector, as the device would."""
        self._act(IRQ_TRIGGER, vector)

    def _act(self, action: int, vector: int) -> None:
        with self._files.explained(self._path):
            self._set(IRQ_DATA_NONE | action, vector, 1)

    def _set(self, flags: int, start: int, count: int, *fds: int) -> None:
        call(self._device, DEVICE_SET_IRQS, f"IIII{len(fds)}i", flags, self.index, start, count, *fds)

    def close(self) -> None:
        """Take the vectors away from the device, and close the eventfds.  May be called again."""
        if self._fds and self._files.is_ours:
            with contextlib.suppress(OSError):  # the device is gone
                self._set(IRQ_DATA_NONE | IRQ_TRIGGER, 0, 0)
        self._close_eventfds()

    def __del__(self) -> None:
        self._close_eventfds()

    def _close_eventfds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Interrupts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
