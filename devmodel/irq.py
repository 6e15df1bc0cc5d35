# SPDX-License-Identifier: Apache-2.0
"""The interrupts of a device: what SET_IRQS sets up, and the one write to a client's eventfd that each of
them is.

State: under ``Irqs.lock``, which is taken after a device's lock. Any thread may trigger: nothing here waits,
and an eventfd calls nobody back, so a model may do it in a register hook.
Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS), the behaviour of vfio-pci's interrupt code.
"""

import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from devmodel.eventfd import Eventfd, Watch, Watcher


@dataclass(frozen=True, slots=True)
class IrqIndex:
    """One interrupt index: how many vectors, and what SET_IRQS may do with them."""

    count: int
    eventfd: bool = True
    maskable: bool = False
    automasked: bool = False
    noresize: bool = False


class PciIrq(IntEnum):
    """Interrupt indexes of vfio-pci."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class Action(Enum):
    """What SET_IRQS does; the values are the names of the methods that do it."""

    MASK = "mask"
    UNMASK = "unmask"
    TRIGGER = "trigger"


@dataclass(frozen=True, slots=True)
class ClientFds:
    """DATA_EVENTFD: the client's descriptor numbers (below 0: none), how to get one, and who waits for it.

    ``borrow`` raises ``OSError``: EBADF for no descriptor, EINVAL for one that is no eventfd.
    """

    numbers: Sequence[int]
    borrow: Callable[[int], Eventfd]
    watcher: Watcher

    def first(self) -> Eventfd | None:
        """The eventfd of the first number, None when that is below 0."""
        return self.borrow(self.numbers[0]) if self.numbers[0] >= 0 else None


Data = bytes | ClientFds | None
"""None is DATA_NONE, bytes are DATA_BOOL; each has as many elements as the range."""


def _invalid(why: str) -> OSError:
    return OSError(errno.EINVAL, why)


class Irqs:
    """All interrupt indexes of one device. INTx, MSI and MSI-X exclude each other: one of them is active."""

    __slots__ = ("_indexes", "_lines", "active", "intx", "lock")

    def __init__(self, indexes: Sequence[IrqIndex | None]) -> None:
        """``indexes`` are in the order of :class:`PciIrq`, None for one that is not there."""
        self.lock = threading.RLock()
        self.active: PciIrq | None = None
        self.intx = Intx(self)
        self._indexes = tuple(indexes)
        lines: Mapping[PciIrq, Line] = {
            PciIrq.INTX: self.intx,
            PciIrq.MSI: Messages(self, PciIrq.MSI, self._resizable(PciIrq.MSI)),
            PciIrq.MSIX: Messages(self, PciIrq.MSIX, self._resizable(PciIrq.MSIX)),
            PciIrq.ERR: Notice(),
            PciIrq.REQ: Notice(),
        }
        self._lines = lines

    def count(self, index: int) -> int:
        """Vectors of ``index``, 0 when there is none."""
        found = self._indexes[index] if 0 <= index < len(self._indexes) else None
        return 0 if found is None else found.count

    def set(self, index: int, action: Action, start: int, count: int, data: Data) -> None:
        """SET_IRQS on ``count`` vectors from ``start``, which the caller has checked against :meth:`count`.

        Raises ``OSError``: ENOTTY for what the index cannot do, EINVAL for a state or range in which it
        cannot, EBUSY for a second unmask eventfd, ERANGE for enabling no vector, EBADF as ``data`` does.
        """
        method: Callable[[int, int, Data], None] | None
        method = getattr(self._lines[PciIrq(index)], action.value, None)
        if method is None:
            raise OSError(errno.ENOTTY, f"interrupt index {index} cannot {action.value}")
        with self.lock:
            method(start, count, data)

    def trigger(self, index: PciIrq, vector: int = 0) -> None:
        """Send message ``vector`` of MSI or MSI-X, or notify of an error or a request, if a client asked for
        it."""
        with self.lock:
            self._lines[index].fire(vector)

    def raise_message(self, vector: int) -> bool:
        """Send ``vector`` as MSI or MSI-X, whichever is active; False when neither is, and INTx is to be
        used."""
        with self.lock:
            active = self.active
            if active is None or active is PciIrq.INTX:
                return False
            self._lines[active].fire(vector)
            return True

    def set_level(self, asserted: bool) -> None:
        """Assert or deassert INTx: asserting an unmasked line signals once and masks it until the client
        unmasks."""
        with self.lock:
            self.intx.set_level(asserted)

    def disable_intx(self, disabled: bool) -> None:
        """The command register's INTX_DISABLE changed or was written again."""
        with self.lock:
            self.intx.disable_by_command(disabled)

    def release(self) -> None:
        """The last client has closed the device: nothing is set up any more."""
        with self.lock:
            for line in self._lines.values():
                line.tear_down()
            self.active = None

    def _resizable(self, index: PciIrq) -> bool:
        found = self._indexes[index] if index < len(self._indexes) else None
        return found is not None and not found.noresize


class Line:
    """What serves one index, under ``Irqs.lock``. Methods named as :class:`Action`'s values are what it can
    do."""

    __slots__ = ()

    def fire(self, vector: int) -> None:
        """The device's own trigger."""
        raise NotImplementedError

    def tear_down(self) -> None:
        """Let go of all eventfds."""
        raise NotImplementedError


class Intx(Line):
    """The one level-triggered line, masked automatically when it fires."""

    __slots__ = ("_eventfd", "_irqs", "_unmask", "asserted", "disabled", "masked")

    def __init__(self, irqs: Irqs) -> None:
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
            raise _invalid("INTx is one line, and another kind of interrupt may be active")
        if isinstance(data, ClientFds):
            self._set_up(data.first())
        elif not self._on:
            raise _invalid("INTx is not set up")
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
            self._irqs.active = None

    @property
    def _on(self) -> bool:
        return self._irqs.active is PciIrq.INTX

    def _check(self, start: int, count: int) -> None:
        if not self._on or start or count != 1:
            raise _invalid("INTx is one line, which is to be set up first")

    def _set_up(self, eventfd: Eventfd | None) -> None:
        if self._eventfd is not None:
            self._eventfd.close()
        self._eventfd = eventfd
        if not self._on:
            self._irqs.active = PciIrq.INTX
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


class Messages(Line):
    """MSI or MSI-X: an eventfd for each vector in use."""

    __slots__ = ("_allocated", "_index", "_irqs", "_resizable", "_vectors")

    def __init__(self, irqs: Irqs, index: PciIrq, resizable: bool) -> None:
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
            raise _invalid(f"{self._irqs.active.name} is active")
        if isinstance(data, ClientFds):
            self._set_up(start, count, data, not on)
        elif not on:
            raise _invalid(f"{self._index.name} is not set up")
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
            self._irqs.active = None

    def _set_up(self, start: int, count: int, data: ClientFds, first: bool) -> None:
        if first:
            if not start + count:
                raise OSError(errno.ERANGE, f"{self._index.name} with no vector")
            self._irqs.active, self._allocated = self._index, start + count
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
            raise _invalid(f"{self._index.name} was set up with {self._allocated} vectors")
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
            raise _invalid("there is one vector")
        if isinstance(data, ClientFds):
            if data.numbers[0] < -1:
                raise _invalid(f"descriptor {data.numbers[0]}")
            self._replace(data.first())
        elif data is None and self._eventfd is None:
            raise _invalid("nothing is set up")
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
