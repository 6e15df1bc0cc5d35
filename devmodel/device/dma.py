# SPDX-License-Identifier: Apache-2.0
"""DMA: how a device reaches the memory of its client, through the IOMMU of its group's container or the IOAS
that it is attached to.

State: which address space it is, and the DMA under way. The address space changes under the device's lock,
and any thread reads it. Source:
Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw, vfio_pin_pages).
"""

import contextlib
import errno
import threading
from collections.abc import Callable
from types import TracebackType

import trio

from devmodel.device.tasks import Tasks, check_current
from devmodel.iommu.api import (
    MAX_PIN_PAGES,
    PAGE_SIZE,
    AskPages,
    DmaFault,
    Fault,
    PageRequest,
    PageResponse,
    Prot,
)
from devmodel.iommu.dmaspace import DmaSpace, Pin, Watch
from devmodel.iommu.inflight import DRAIN_SECONDS

_making = threading.Lock()
"""Held while a port gets what its threads wait at."""


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


class _UnderWay:
    """The block in which a device uses an address space. Entered before it looks which one that is. Refused
    accesses are counted if it ``counts``."""

    __slots__ = ("_counts", "_port")

    def __init__(self, port: "DmaPort", counts: bool = False) -> None:
        self._port, self._counts = port, counts

    def __enter__(self) -> Watch | None:
        port = self._port
        port.active.add(self)
        return port.watch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        port = self._port
        port.active.discard(self)
        if port.waiting:
            port.wake()
        if kind is not None and self._counts and issubclass(kind, DmaFault):
            port.fault_count += 1


class DmaPort:
    """DMA of one device. ``allowed`` tells whether the device may do DMA now: a PCI function may while it is
    bus master.

    ``active`` has the blocks under way. ``waiting`` is how many threads wait for some of them to end.
    """

    __slots__ = (
        "_allowed",
        "_ended",
        "_pins",
        "_space",
        "_tasks",
        "active",
        "ask_pages",
        "fault_count",
        "waiting",
        "watch",
    )

    def __init__(self, tasks: Tasks, allowed: Callable[[], bool]) -> None:
        self._tasks, self._allowed = tasks, allowed
        self._space: DmaSpace | None = None
        self._ended: threading.Condition | None = None
        self._pins: set[Pin] = set()
        self.active: set[_UnderWay] = set()
        self.waiting = 0
        self.watch: Watch | None = None
        """Puts something before the address space of a pin, for each access. Changes as the address space
        does."""
        self.ask_pages: AskPages | None = None
        """Makes a page request. None while the device is bound to no iommufd."""
        self.fault_count = 0
        """How many accesses of this device were refused."""

    @property
    def connected(self) -> DmaSpace | None:
        """The addresses that it is connected to, whether it may use them now or not. Any thread."""
        return self._space

    @property
    def pinned_pages(self) -> int:
        """Pages that the device holds now. Any thread."""
        return sum(pin.size for pin in tuple(self._pins) if not pin.released) // PAGE_SIZE

    def connect(self, space: DmaSpace | None) -> None:
        """From now on through ``space``; None is without any. Under the device's lock. DMA that has begun
        goes on where it began: see :meth:`settle`."""
        self._space = space

    def abandon(self) -> None:
        """The last client has closed the device. DMA that it has begun is of no interest to later clients,
        and may be held up by its memory for ever. Under the device's lock."""
        self.active = set()

    def settle(self) -> None:
        """Wait until all DMA of this client that is under way now has ended, also to pinned pages.

        Raises ``OSError(EBUSY)`` when one takes longer than ``DRAIN_SECONDS``."""
        before = self.active.copy()
        if not before:
            return
        with _making:
            ended = self._ended = self._ended or threading.Condition()
        with ended:
            self.waiting += 1  # from here on each block that ends wakes this thread
            try:
                if not ended.wait_for(lambda: before.isdisjoint(self.active), DRAIN_SECONDS):
                    raise OSError(errno.EBUSY, "a DMA does not end")
            finally:
                self.waiting -= 1

    def wake(self) -> None:
        """Tell :meth:`settle` that a block has ended. Any thread."""
        ended = self._ended
        if ended is not None:
            with ended:
                ended.notify_all()

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
            pinned: Pin = await self._tasks.in_thread(lambda: expected.take(self._pin(iova, count, prot)))
        except BaseException:
            expected.give_up()
            raise
        self._pins = {pin for pin in self._pins if not pin.released} | {pinned}
        return pinned

    async def request_pages(self, iova: int, count: int = 1, prot: Prot = Prot.READ) -> PageResponse:
        """Ask the client for ``count`` pages from ``iova``, which need not be mapped yet, and wait for its
        answer, as long as that takes. Trio thread. For a function with :func:`page_requests` among its
        capabilities; the client gives its HWPT a fault queue.

        Raises :class:`DmaFault` as a DMA that the device may not begin, ValueError for no page or more than
        512."""
        if not 0 < count <= MAX_PIN_PAGES:
            raise ValueError(f"{count} pages at once: 1 to {MAX_PIN_PAGES}")
        self.space(iova, count * PAGE_SIZE, bool(prot & Prot.WRITE))
        request, response = PageRequest(iova, count, prot), PageResponse.INVALID
        ask = self.ask_pages
        if ask is not None:
            response = await self._answer_to(request, ask)
        space = self._space
        if space is not None:
            space.asked_pages(request, response)
        return response

    async def _answer_to(self, request: PageRequest, ask: AskPages) -> PageResponse:
        """Make a page request, and wait for the answer."""
        answered = trio.Event()
        answers, trio_thread = list[PageResponse](), trio.lowlevel.current_trio_token()

        def answer(response: PageResponse) -> None:
            answers.append(response)
            with contextlib.suppress(trio.RunFinishedError):  # the lab has ended
                trio_thread.run_sync_soon(answered.set)

        ask(request, answer)
        await answered.wait()
        check_current()
        return answers[0]

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

    def counting(self) -> _UnderWay:
        """As :meth:`under_way`, and count refused accesses in the block."""
        return _UnderWay(self, counts=True)

    def under_way(self) -> _UnderWay:
        """The block for ``with``, around :meth:`space` and the use of what it gives, for models that use it
        themselves. Any thread."""
        return _UnderWay(self)

    def _pin(self, iova: int, count: int, prot: Prot) -> Pin:
        with self.under_way():
            pin = self.space(iova).pin_pages(iova, count, prot)
        pin.within = self.under_way
        return pin

    def space(self, iova: int = 0, size: int = 0, write: bool = False) -> DmaSpace:
        """The addresses that it may use now, within :meth:`under_way`. Raises :class:`DmaFault` for a DMA of
        ``size`` bytes when there is none (no client, or no IOMMU) or the device is no bus master."""
        check_current()
        space = self._space
        if space is None:
            raise DmaFault(Fault(iova, size, write, "the device is attached to no address space"))
        if not self._allowed():
            space.refuse(iova, size, write, "the device is no bus master")
        return space
