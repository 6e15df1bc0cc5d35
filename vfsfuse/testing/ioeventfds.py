# SPDX-License-Identifier: Apache-2.0
"""ioeventfds of a device on a bench: the client signals an eventfd, and a register is written.

State: a :class:`Doorbell` belongs to the test's thread. The write is made on a watcher's thread, as in a lab.
Source: <linux/vfio.h> (VFIO_DEVICE_IOEVENTFD).
"""

import os
import threading
from collections.abc import Callable

from devmodel.device.tasks import CODE_FAILED, Report
from devmodel.irq.eventfd import Eventfd, Watch, Watcher
from devmodel.region.backing import REGION_SHIFT
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.vfio_pci import IoEventfdRequest, ioeventfd
from vfsfuse.testing.memory import Caller
from vfsfuse.testing.registers import Place


class _NotingWatcher(Watcher):
    """Waits for one eventfd. Tells when it has called back, and of failures. ``live`` is whether it waits."""

    __slots__ = ("_done", "_failed", "live")

    def __init__(self, failed: Report, done: Callable[[], None]) -> None:
        super().__init__()
        self._failed, self._done = failed, done
        self.live = True

    def watch(self, eventfd: Eventfd, notify: Callable[[], None]) -> Watch:
        def noted() -> None:
            try:
                notify()
            except CODE_FAILED as error:
                self._failed("the write of an ioeventfd failed", error)
            finally:
                self._done()

        return super().watch(eventfd, noted)

    def drop(self, watch: Watch) -> None:
        super().drop(watch)
        self.live = False
        self._done()  # nobody is called back any more


class Doorbell:
    """An ioeventfd, from ``bench.ioeventfd()``: :meth:`signal` writes ``value`` at its place."""

    def __init__(self, file: DeviceFile, place: Place, value: int, call: Caller, failed: Report) -> None:
        """On the lane. Raises ``OSError`` as VFIO_DEVICE_IOEVENTFD."""
        self._file, self._call = file, call
        self._written = threading.Event()
        self._watcher = _NotingWatcher(failed, self._written.set)
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._request = IoEventfdRequest(
            place.width, (place.region << REGION_SHIFT) + place.offset, value, self._fd
        )
        try:
            ioeventfd(file, self._request, lambda fd: Eventfd(os.dup(fd), _nothing), self._watcher)
        except BaseException:
            os.close(self._fd)
            raise

    def signal(self) -> None:
        """Signal the eventfd, and wait for the write. An exception of its hook is raised as
        :class:`ModelFailed`. Nothing is written after the ioeventfd was removed, or the device closed."""
        self._call(self._signal)

    def remove(self) -> None:
        """The client removes the ioeventfd. Raises ``OSError(ENODEV)`` when it is gone already."""
        self._call(lambda: ioeventfd(self._file, self._request._replace(fd=-1), _no_eventfd, self._watcher))

    def end(self) -> None:
        """The bench ends. On the lane."""
        self._watcher.close()
        os.close(self._fd)

    def _signal(self) -> None:
        self._written.clear()
        os.eventfd_write(self._fd, 1)
        if self._watcher.live:
            self._written.wait()


def _nothing(fd: int) -> None:
    """Nobody signals it but the client."""


def _no_eventfd(fd: int) -> Eventfd:
    raise AssertionError("an ioeventfd is removed without one")
