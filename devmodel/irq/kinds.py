# SPDX-License-Identifier: Apache-2.0
"""The kinds of interrupts that a VFIO PCI device has: INTx, messages (MSI and MSI-X), notices (ERR and REQ).

Each kind has the actions of SET_IRQS that vfio-pci offers for it, and fires by signalling a client's eventfd.
:class:`devmodel.irq.irqs.Irqs` puts them together.

State: under ``Irqs.lock``. Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS), the behaviour of vfio-pci.
"""

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from devmodel.irq.eventfd import Eventfd, Watch, Watcher


class PciIrq(IntEnum):
    """Interrupt indexes of vfio-pci."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


@dataclass(frozen=True, slots=True)
class ClientFds:
    """The data of a SET_IRQS with DATA_EVENTFD: one descriptor number for each vector, below 0 for none.

    ``borrow`` gives a copy of the client's descriptor with a number, and ``watcher`` waits for eventfds that
    the client signals. ``borrow`` raises ``OSError``: EBADF for no descriptor, EINVAL for one that is no
    eventfd.
    """

    numbers: Sequence[int]
    borrow: Callable[[int], Eventfd]
    watcher: Watcher
    listen: Callable[[int, Eventfd], None] | None = None
    """Is told of the eventfd that is borrowed for the vector at a position of ``numbers``."""

    def at(self, position: int) -> Eventfd | None:
        """The eventfd by which the vector at ``position`` interrupts, None for a number below 0. ``OSError``
        as ``borrow``."""
        if self.numbers[position] < 0:
            return None
        eventfd = self.borrow(self.numbers[position])
        if self.listen is not None:
            self.listen(position, eventfd)
        return eventfd


Data = bytes | ClientFds | None
"""The data of a SET_IRQS: None is DATA_NONE, bytes are DATA_BOOL, one for each vector of the range."""


def invalid(why: str) -> OSError:
    """``OSError(EINVAL)`` with a reason."""
    return OSError(errno.EINVAL, why)


class ActiveIrq:
    """Which of INTx, MSI and MSI-X a client has set up: one at a time, as :attr:`active`, or none.

    :attr:`vectors` are the eventfds of the active MSI or MSI-X, None when neither is active: an interrupt
    looks up nothing else.
    """

    __slots__ = ("active", "lock", "messages_allowed", "messages_used", "vectors")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.messages_allowed = True
        """Whether MSI and MSI-X may be set up; those that are set up stay."""
        self.messages_used = False
        """Whether MSI or MSI-X was set up since a driver was bound."""
        self.active: PciIrq | None = None
        self.vectors: Mapping[int, Eventfd] | None = None

    def activate(self, index: PciIrq | None, vectors: Mapping[int, Eventfd] | None = None) -> None:
        """Make ``index`` the active one, or none. ``vectors`` are its eventfds if it is MSI or MSI-X."""
        self.active, self.vectors = index, vectors
        self.messages_used |= vectors is not None


class IrqKind(ABC):
    """The state of one interrupt index. Everything in it is called under ``Irqs.lock``.

    The methods that are named as the values of :class:`devmodel.irq.irqs.Action` are what SET_IRQS can do
    with the index.
    """

    __slots__ = ()

    @abstractmethod
    def fire(self, vector: int) -> None:
        """Interrupt the client, as the device does."""

    @abstractmethod
    def tear_down(self) -> None:
        """Close all eventfds: nothing is set up any more."""

    @abstractmethod
    def eventfds(self) -> Iterable[tuple[int, Eventfd]]:
        """The eventfds by which it interrupts, each with its vector."""


class Intx(IrqKind):
    """INTx: one level-triggered line, which masks itself when it fires.

    ``asserted`` is the level that the device drives, ``disabled`` the command register's INTX_DISABLE.
    """

    __slots__ = ("_eventfd", "_irqs", "_unmask", "asserted", "disabled", "masked")

    def __init__(self, irqs: ActiveIrq) -> None:
        self._irqs = irqs
        self._eventfd: Eventfd | None = None
        self._unmask: Watch | None = None
        self.asserted = False
        self.disabled = False
        self.masked = False

    def trigger(self, start: int, count: int, data: Data) -> None:
        """Set the line up, tear it down, or fire as the device does."""
        if self._on and not count and data is None:
            self.tear_down()
            return
        if self._irqs.active not in (None, PciIrq.INTX) or start or count != 1:
            raise invalid("INTx is one line, and another kind of interrupt may be active")
        if isinstance(data, ClientFds):
            self._set_up(data.at(0))
        elif not self._on:
            raise invalid("INTx is not set up")
        elif data is None or data[0]:
            self._send()

    def mask(self, start: int, count: int, data: Data) -> None:
        """Mask the line now. ``OSError(ENOTTY)`` for an eventfd that is to mask it: vfio-pci has none."""
        self._check(start, count)
        if isinstance(data, ClientFds):
            raise OSError(errno.ENOTTY, "INTx cannot be masked by eventfd")
        if data is None or data[0]:
            self.masked = True

    def unmask(self, start: int, count: int, data: Data) -> None:
        """Unmask the line now, or with an eventfd whenever the client signals that."""
        self._check(start, count)
        if isinstance(data, ClientFds):
            self._unmask_by(data)
        elif data is None or data[0]:
            self._do_unmask()

    def fire(self, vector: int) -> None:
        """Raises ValueError: the line has a level, which :meth:`set_level` changes."""
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

    def eventfds(self) -> Iterable[tuple[int, Eventfd]]:
        return () if self._eventfd is None else ((0, self._eventfd),)

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
        self.masked = self.asserted  # a line that is still asserted fires again at once
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
        """The client signalled the unmask eventfd. Watcher's thread; INTx may be torn down by now."""
        with self._irqs.lock:
            if self._on and self._unmask is not None:
                self._do_unmask()


class Messages(IrqKind):
    """MSI or MSI-X: an eventfd for each vector in use."""

    __slots__ = ("_index", "_irqs", "_resizable", "allocated", "vectors")

    def __init__(self, irqs: ActiveIrq, index: PciIrq, resizable: bool) -> None:
        """``resizable`` is whether vectors beyond those of the first SET_IRQS can be added later."""
        self._irqs = irqs
        self._index = index
        self._resizable = resizable
        self.allocated = 0
        self.vectors: dict[int, Eventfd] = {}

    def trigger(self, start: int, count: int, data: Data) -> None:
        """Enable with a first range of vectors, change a range, tear down, or fire as the device does."""
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
        eventfd = self.vectors.get(vector)
        if eventfd is not None:
            eventfd.signal()

    def tear_down(self) -> None:
        self._drop(list(self.vectors))
        self.allocated = 0
        if self._irqs.active is self._index:
            self._irqs.activate(None)

    def eventfds(self) -> Iterable[tuple[int, Eventfd]]:
        return self.vectors.items()

    def _set_up(self, start: int, count: int, data: ClientFds, first: bool) -> None:
        if first:
            if not start + count:
                raise OSError(errno.ERANGE, f"{self._index.name} with no vector")
            if not self._irqs.messages_allowed:
                raise invalid(f"{self._index.name} is not allowed")
            self._irqs.activate(self._index, self.vectors)
            self.allocated = start + count
        try:
            for position in range(len(data.numbers)):
                self._set(start + position, position, data)
        except OSError:
            self._drop(range(start, start + count))
            if first:
                self.tear_down()
            raise

    def _set(self, vector: int, position: int, data: ClientFds) -> None:
        self._drop((vector,))
        if data.numbers[position] < 0:
            return
        if vector >= self.allocated and not self._resizable:
            raise invalid(f"{self._index.name} was set up with {self.allocated} vectors")
        eventfd = data.at(position)
        if eventfd is not None:
            self.vectors[vector] = eventfd

    def _drop(self, vectors: Sequence[int]) -> None:
        for vector in vectors:
            eventfd = self.vectors.pop(vector, None)
            if eventfd is not None:
                eventfd.close()


class Notice(IrqKind):
    """ERR or REQ: one eventfd by which the device tells its client of an error, or asks it to let go."""

    __slots__ = ("_eventfd",)

    def __init__(self) -> None:
        self._eventfd: Eventfd | None = None

    def trigger(self, start: int, count: int, data: Data) -> None:
        """Set the eventfd, take it away (number -1, or DATA_NONE with no vector), or fire as the device
        does."""
        if start or count > 1 or (data is not None and not count):
            raise invalid("there is one vector")
        if isinstance(data, ClientFds):
            if data.numbers[0] < -1:
                raise invalid(f"descriptor {data.numbers[0]}")
            self._replace(data.at(0))
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

    def eventfds(self) -> Iterable[tuple[int, Eventfd]]:
        return () if self._eventfd is None else ((0, self._eventfd),)

    def _replace(self, eventfd: Eventfd | None) -> None:
        if self._eventfd is not None:
            self._eventfd.close()
        self._eventfd = eventfd
