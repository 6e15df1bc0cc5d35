# SPDX-License-Identifier: Apache-2.0
"""Interrupts that are messages: the vectors of MSI and MSI-X, and the notices of errors and requests.

State: under ``Exclusive.lock``. Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS), vfio-pci's behaviour.
"""

import errno
from collections.abc import Sequence

from devmodel.irq.eventfd import Eventfd
from devmodel.irq.line import ClientFds, Data, Exclusive, Line, PciIrq, invalid


class Messages(Line):
    """MSI or MSI-X: an eventfd for each vector in use."""

    __slots__ = ("_allocated", "_index", "_irqs", "_resizable", "_vectors")

    def __init__(self, irqs: Exclusive, index: PciIrq, resizable: bool) -> None:
        self._irqs = irqs
        self._index = index
        self._resizable = resizable
        self._allocated = 0
        self._vectors: dict[int, Eventfd] = {}

    def trigger(self, start: int, count: int, data: Data) -> None:
        """Enable with a first range of vectors, change a range, tear down, or fire as the device would."""
        on = self._irqs.active is self._index
        if on and not count and data is None:
            self.tear_down()
            return
        if not on and self._irqs.active is not None:
            raise invalid(f"{self._irqs.active.name} is active")
        if isinstance(data, ClientFds):
            self._set_up(start, count, data, not on)
        elif not on:
            raise invalid(f"{self._index.name} is not set up")
        else:
            for number in range(count):
                if data is None or data[number]:
                    self.fire(start + number)

    def fire(self, vector: int) -> None:
        eventfd = self._vectors.get(vector)
        if eventfd is not None:
            eventfd.signal()

    def tear_down(self) -> None:
        self._drop(list(self._vectors))
        self._allocated = 0
        if self._irqs.active is self._index:
            self._irqs.activate(None)

    def _set_up(self, start: int, count: int, data: ClientFds, first: bool) -> None:
        if first:
            if not start + count:
                raise OSError(errno.ERANGE, f"{self._index.name} with no vector")
            self._irqs.activate(self._index, self._vectors)
            self._allocated = start + count
        try:
            for vector, number in enumerate(data.numbers, start):
                self._set(vector, number, data)
        except OSError:
            self._drop(range(start, start + count))
            if first:
                self.tear_down()
            raise

    def _set(self, vector: int, number: int, data: ClientFds) -> None:
        self._drop((vector,))
        if number < 0:
            return
        if vector >= self._allocated and not self._resizable:
            raise invalid(f"{self._index.name} was set up with {self._allocated} vectors")
        self._vectors[vector] = data.borrow(number)

    def _drop(self, vectors: Sequence[int]) -> None:
        for vector in vectors:
            eventfd = self._vectors.pop(vector, None)
            if eventfd is not None:
                eventfd.close()


class Notice(Line):
    """ERR or REQ: one eventfd by which the device tells its client something."""

    __slots__ = ("_eventfd",)

    def __init__(self) -> None:
        self._eventfd: Eventfd | None = None

    def trigger(self, start: int, count: int, data: Data) -> None:
        """Set up, take away (-1, or no vector with DATA_NONE), or fire as the device would."""
        if start or count > 1 or (data is not None and not count):
            raise invalid("there is one vector")
        if isinstance(data, ClientFds):
            if data.numbers[0] < -1:
                raise invalid(f"descriptor {data.numbers[0]}")
            self._replace(data.first())
        elif data is None and self._eventfd is None:
            raise invalid("nothing is set up")
        elif data is None and not count:
            self._replace(None)
        elif data is None or data[0]:
            self.fire(0)

    def fire(self, vector: int) -> None:
        if self._eventfd is not None:
            self._eventfd.signal()

    def tear_down(self) -> None:
        self._replace(None)

    def _replace(self, eventfd: Eventfd | None) -> None:
        if self._eventfd is not None:
            self._eventfd.close()
        self._eventfd = eventfd
