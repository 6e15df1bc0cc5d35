# SPDX-License-Identifier: Apache-2.0
"""DMA: how a device reaches the memory of its client, through the IOMMU of its group's container.

State: which address space it is. It changes under the device's lock, and any thread reads it. Source:
Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw, vfio_pin_pages).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from devmodel.device.tasks import Tasks, check_current
from devmodel.iommu.api import PAGE_SIZE, DmaFault, Fault, Prot
from devmodel.iommu.dmaspace import DmaSpace, Pin


class _Expected:
    """A pin that a thread makes for a task. The task may have given up when it is made: then the thread
    releases it. Any thread."""

    __slots__ = ("_lock", "_pin", "_wanted")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pin: Pin | None = None
        self._wanted = True

    def take(self, pin: Pin) -> Pin:
        """The pin is made."""
        with self._lock:
            self._pin = pin
            wanted = self._wanted
        if not wanted:
            pin.release()
        return pin

    def give_up(self) -> None:
        """Nobody waits for the pin any more."""
        with self._lock:
            self._wanted = False
            pin = self._pin
        if pin is not None:
            pin.release()


class DmaPort:
    """DMA of one device. ``allowed`` tells whether the device may do DMA now: a PCI function may while it is
    bus master."""

    __slots__ = ("_allowed", "_pins", "_space", "_tasks", "fault_count")

    def __init__(self, tasks: Tasks, allowed: Callable[[], bool]) -> None:
        self._tasks, self._allowed = tasks, allowed
        self._space: DmaSpace | None = None
        self._pins: set[Pin] = set()
        self.fault_count = 0
        """How many accesses of this device were refused."""

    @property
    def pinned_pages(self) -> int:
        """Pages that the device holds now. Any thread."""
        return sum(pin.size for pin in tuple(self._pins) if not pin.released) // PAGE_SIZE

    def connect(self, space: DmaSpace | None) -> None:
        """From now on through ``space``; None is without any. Under the device's lock."""
        self._space = space

    async def read(self, iova: int, size: int) -> bytes:
        """``size`` bytes at ``iova``. Trio thread. Raises :class:`DmaFault`."""
        data: bytes = await self._tasks.in_thread(self.read_now, iova, size)
        return data

    async def read_into(self, iova: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` with what is at ``iova``. Trio thread. Raises :class:`DmaFault`.

        A task that is stopped does not wait for the copy to end, so nothing else may use the buffer after
        that.
        """
        await self._tasks.in_thread(self.read_into_now, iova, buffer)

    async def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``iova``. Trio thread. Raises :class:`DmaFault`."""
        await self._tasks.in_thread(self.write_now, iova, data)

    async def pin(self, iova: int, count: int, prot: Prot) -> Pin:
        """Hold ``count`` pages from ``iova`` until :meth:`Pin.release`, for a model that has
        :meth:`Device.dma_unmap`. Trio thread.

        Raises :class:`DmaFault`, and ``OSError`` as :meth:`DmaSpace.pin_pages`. A task that is stopped does
        not wait for the client, and holds nothing afterwards.
        """
        expected = _Expected()
        try:
            pinned: Pin = await self._tasks.in_thread(
                lambda: expected.take(self.space(iova).pin_pages(iova, count, prot))
            )
        except BaseException:
            expected.give_up()
            raise
        self._pins = {pin for pin in self._pins if not pin.released} | {pinned}
        return pinned

    def read_now(self, iova: int, size: int) -> bytes:
        """As :meth:`read`, for threads of the model's own. Never on the device lane or the trio thread: a
        client whose memory does not answer would stop them."""
        with self.counting():
            return self.space(iova, size).dma_read(iova, size)

    def read_into_now(self, iova: int, buffer: bytearray | memoryview) -> None:
        """As :meth:`read_into`, for threads as :meth:`read_now`."""
        with self.counting():
            self.space(iova, len(buffer)).dma_rw(iova, buffer, write=False)

    def write_now(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """As :meth:`write`, for threads as :meth:`read_now`."""
        with self.counting():
            space = self.space(iova, len(data), write=True)
            if isinstance(data, bytes):
                space.dma_write(iova, data)
            else:
                space.dma_rw(iova, data, write=True)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count refused accesses in the block, for models that use :meth:`space` themselves. Any thread."""
        try:
            yield
        except DmaFault:
            self.fault_count += 1
            raise

    def space(self, iova: int = 0, size: int = 0, write: bool = False) -> DmaSpace:
        """The addresses that it may use now. Raises :class:`DmaFault` for a DMA of ``size`` bytes when there
        is none (no client, or no IOMMU) or the device is no bus master."""
        check_current()
        space = self._space
        if space is None:
            raise DmaFault(Fault(iova, size, write, "the device is in no container with an IOMMU"))
        if not self._allowed():
            raise DmaFault(Fault(iova, size, write, "the device is no bus master"))
        return space
