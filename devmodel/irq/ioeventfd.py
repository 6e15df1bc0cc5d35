# SPDX-License-Identifier: Apache-2.0
"""ioeventfds: a client signals an eventfd, and fixed data is written at a fixed place of a BAR.

State: under ``IoEventfds.lock``, which is taken after a group's lock and never while a device's is held. The
write itself is done on the watcher's thread. Source: <linux/vfio.h> (VFIO_DEVICE_IOEVENTFD).
"""

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import NamedTuple

from devmodel.irq.eventfd import Eventfd, Watch, Watcher

LIMIT = 1000
"""How many one device can have, as with vfio-pci."""


class IoWrite(NamedTuple):
    """``size`` bytes of ``data`` (little-endian) at ``offset`` of region ``region``."""

    region: int
    offset: int
    size: int
    data: int


class IoEventfds:
    """The ioeventfds of one device. ``write(region, offset, data, wanted)`` writes to the device, at once; or
    later, under :attr:`lock`, if ``wanted()`` says that the ioeventfd is still there."""

    __slots__ = ("_watches", "_write", "lock")

    def __init__(self, write: Callable[[int, int, bytes, Callable[[], bool]], int]) -> None:
        self.lock = threading.RLock()
        self._write = write
        self._watches: dict[IoWrite, Watch] = {}

    def add(self, what: IoWrite, borrow: Callable[[], Eventfd], watcher: Watcher) -> None:
        """Do the write ``what`` whenever the client signals the eventfd that ``borrow`` gives.

        Raises ``OSError``: EEXIST when ``what`` has an eventfd already, ENOSPC at :data:`LIMIT`, and what
        ``borrow`` raises.
        """
        with self.lock:
            if what in self._watches:
                raise OSError(errno.EEXIST, f"{what} has an eventfd already")
            if len(self._watches) >= LIMIT:
                raise OSError(errno.ENOSPC, f"the device has {LIMIT} ioeventfds already")
            self._watches[what] = watcher.watch(borrow(), lambda: self._signalled(what))

    def remove(self, what: IoWrite) -> None:
        """Undo :meth:`add`. Raises ``OSError(ENODEV)`` when ``what`` has no eventfd."""
        with self.lock:
            watch = self._watches.pop(what, None)
        if watch is None:
            raise OSError(errno.ENODEV, f"{what} has no eventfd")
        watch.cancel()

    def release(self) -> None:
        """Drop them all: the last client has closed the device."""
        with self.lock:
            watches = list(self._watches.values())
            self._watches.clear()
        for watch in watches:
            watch.cancel()

    def _signalled(self, what: IoWrite) -> None:
        with self.lock:  # who removes it waits for the write
            watch = self._watches.get(what)
            if watch is None:
                return
            data = (what.data & _mask(what.size)).to_bytes(what.size, "little")
            with contextlib.suppress(OSError):  # the device is gone, and nobody waits for an answer
                self._write(what.region, what.offset, data, lambda: self._watches.get(what) is watch)


def _mask(size: int) -> int:
    return (1 << 8 * size) - 1
