# SPDX-License-Identifier: Apache-2.0
"""INTx as vfio-pci has it: one level-triggered line that masks itself when it fires.

State: under ``Exclusive.lock``. Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS), vfio-pci's behaviour.
"""

import errno

from devmodel.irq.eventfd import Eventfd, Watch
from devmodel.irq.line import ClientFds, Data, Exclusive, Line, PciIrq, invalid


class Intx(Line):
    """The one level-triggered line, masked automatically when it fires."""

    __slots__ = ("_eventfd", "_irqs", "_unmask", "asserted", "disabled", "masked")

    def __init__(self, irqs: Exclusive) -> None:
        self._irqs = irqs
        self._eventfd: Eventfd | None = None
        self._unmask: Watch | None = None
        self.asserted = False
        self.disabled = False
        self.masked = False

    def trigger(self, start: int, count: int, data: Data) -> None:
        """Set up, tear down, or fire as the device would."""
        if self._on and not count and data is None:
            self.tear_down()
            return
        if self._irqs.active not in (None, PciIrq.INTX) or start or count != 1:
            raise invalid("INTx is one line, and another kind of interrupt may be active")
        if isinstance(data, ClientFds):
            self._set_up(data.first())
        elif not self._on:
            raise invalid("INTx is not set up")
        elif data is None or data[0]:
            self._send()

    def mask(self, start: int, count: int, data: Data) -> None:
        """Mask; by eventfd is what vfio-pci cannot do either (ENOTTY)."""
        self._check(start, count)
        if isinstance(data, ClientFds):
            raise OSError(errno.ENOTTY, "INTx cannot be masked by eventfd")
        if data is None or data[0]:
            self.masked = True

    def unmask(self, start: int, count: int, data: Data) -> None:
        """Unmask now, or (DATA_EVENTFD) whenever that is signalled."""
        self._check(start, count)
        if isinstance(data, ClientFds):
            self._unmask_by(data)
        elif data is None or data[0]:
            self._do_unmask()

    def fire(self, vector: int) -> None:
        raise ValueError("INTx has a level: use set_level()")

    def set_level(self, asserted: bool) -> None:
        """As :meth:`Irqs.set_level`."""
        self.asserted = asserted
        self._handle()

    def disable_by_command(self, disabled: bool) -> None:
        """As :meth:`Irqs.disable_intx`."""
        changed, self.disabled = disabled is not self.disabled, disabled
        if changed and self._on:
            if disabled:
                self.masked = True
            else:
                self._do_unmask()

    def tear_down(self) -> None:
        if self._eventfd is not None:
            self._eventfd.close()
        if self._unmask is not None:
            self._unmask.cancel()
        self._eventfd = self._unmask = None
        self.masked = False
        if self._on:
            self._irqs.activate(None)

    @property
    def _on(self) -> bool:
        return self._irqs.active is PciIrq.INTX

    def _check(self, start: int, count: int) -> None:
        if not self._on or start or count != 1:
            raise invalid("INTx is one line, which is to be set up first")

    def _set_up(self, eventfd: Eventfd | None) -> None:
        if self._eventfd is not None:
            self._eventfd.close()
        self._eventfd = eventfd
        if not self._on:
            self._irqs.activate(PciIrq.INTX)
            self.masked = self.disabled
        self._handle()

    def _handle(self) -> None:
        if self.asserted and self._on and not self.masked:
            self.masked = True
            self._send()

    def _do_unmask(self) -> None:
        if not self.masked or self.disabled:
            return
        self.masked = self.asserted  # still asserted, it fires again at once
        if self.asserted:
            self._send()

    def _send(self) -> None:
        if self._eventfd is not None and not self.disabled:
            self._eventfd.signal()

    def _unmask_by(self, data: ClientFds) -> None:
        if data.numbers[0] < 0:
            if self._unmask is not None:
                self._unmask.cancel()
            self._unmask = None
            return
        eventfd = data.borrow(data.numbers[0])
        if self._unmask is not None:
            eventfd.close()
            raise OSError(errno.EBUSY, "INTx has an unmask eventfd already")
        self._unmask = data.watcher.watch(eventfd, self._unmasked)

    def _unmasked(self) -> None:
        """On the watcher's thread; the setting may be gone by now."""
        with self._irqs.lock:
            if self._on and self._unmask is not None:
                self._do_unmask()
