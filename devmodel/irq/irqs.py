# SPDX-License-Identifier: Apache-2.0
"""The interrupts of a device. A client sets them up by SET_IRQS, and each one signals an eventfd of its own.

State: under ``Irqs.lock``, which is taken after a device's lock. Any thread may trigger an interrupt, and a
model may do so in a register hook: signalling an eventfd does not wait and calls nobody back.
Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS), the behaviour of vfio-pci's interrupt code.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from devmodel.irq.eventfd import Eventfd
from devmodel.irq.kinds import ActiveIrq, Data, Intx, IrqKind, Messages, Notice, PciIrq


@dataclass(frozen=True, slots=True)
class IrqIndex:
    """What GET_IRQ_INFO says of an interrupt index: its vectors, and what SET_IRQS may do with them.

    ``noresize`` is that a client cannot add vectors later without tearing the index down first.
    """

    count: int
    eventfd: bool = True
    maskable: bool = False
    automasked: bool = False
    noresize: bool = False


class MessageVectors(NamedTuple):
    """The vectors that a driver has: by MSI-X, or by MSI."""

    msix: bool
    vectors: Sequence[int]


class Action(Enum):
    """What SET_IRQS does; the values are the names of the methods that do it."""

    MASK = "mask"
    UNMASK = "unmask"
    TRIGGER = "trigger"


class Irqs(ActiveIrq):
    """All interrupt indexes of one device."""

    __slots__ = ("_indexes", "_kinds", "intx")

    def __init__(self, indexes: Sequence[IrqIndex | None]) -> None:
        """``indexes`` are in the order of :class:`PciIrq`, None for an index that the device has not."""
        super().__init__()
        self.intx = Intx(self)
        self._indexes = tuple(indexes)
        kinds: Mapping[PciIrq, IrqKind] = {
            PciIrq.INTX: self.intx,
            PciIrq.MSI: Messages(self, PciIrq.MSI, self._resizable(PciIrq.MSI)),
            PciIrq.MSIX: Messages(self, PciIrq.MSIX, self._resizable(PciIrq.MSIX)),
            PciIrq.ERR: Notice(),
            PciIrq.REQ: Notice(),
        }
        self._kinds = kinds

    @property
    def allocated(self) -> int:
        """How many vectors of the active MSI or MSI-X were set up first, 0 when neither is active."""
        with self.lock:
            kind = None if self.active is None else self._kinds[self.active]
            return kind.allocated if isinstance(kind, Messages) else 0

    def send_messages(self, on: bool) -> None:
        """Whether the active MSI or MSI-X sends what the device interrupts by: its enable bit."""
        with self.lock:
            kind = None if self.active is None else self._kinds[self.active]
            if isinstance(kind, Messages):
                self.vectors = kind.vectors if on else {}

    def count(self, index: int) -> int:
        """Vectors of ``index``, 0 when the device has no such index."""
        found = self._indexes[index] if 0 <= index < len(self._indexes) else None
        return 0 if found is None else found.count

    def resize(self, index: PciIrq, count: int) -> None:
        """Give ``index`` another number of vectors. No client has the device open."""
        indexes = list(self._indexes)
        found = indexes[index]
        assert found is not None
        indexes[index] = replace(found, count=count)
        self._indexes = tuple(indexes)

    @property
    def indexes(self) -> tuple[IrqIndex | None, ...]:
        """The interrupt indexes, None for one that the device has not."""
        return self._indexes

    def set(self, index: int, action: Action, start: int, count: int, data: Data) -> None:
        """SET_IRQS on ``count`` vectors from ``start``. The caller has checked them against :meth:`count`.

        Raises ``OSError``: ENOTTY for an action that the index has not, EINVAL for one that it cannot do now
        or not with this range, EBUSY for a second unmask eventfd, ERANGE for enabling no vector, and what
        :attr:`ClientFds.borrow` raises.
        """
        method: Callable[[int, int, Data], None] | None
        method = getattr(self._kinds[PciIrq(index)], action.value, None)
        if method is None:
            raise OSError(errno.ENOTTY, f"interrupt index {index} cannot {action.value}")
        with self.lock:
            method(start, count, data)

    def trigger(self, index: PciIrq, vector: int = 0) -> None:
        """Send message ``vector`` of MSI or MSI-X, or the notice ERR or REQ, if a client has set it up."""
        with self.lock:
            self._kinds[index].fire(vector)

    def raise_message(self, vector: int) -> bool:
        """Send message ``vector`` as MSI or MSI-X, whichever is active. False when neither is: the device is
        to use INTx."""
        with self.lock:
            if self.vectors is None:
                return False
            eventfd = self.vectors.get(vector)
            if eventfd is not None:
                eventfd.signal()
            return True

    def message_vectors(self) -> MessageVectors | None:
        """The vectors of MSI or MSI-X, whichever is active, None while neither is. Any thread."""
        with self.lock:
            kind = None if self.active is None else self._kinds[self.active]
            if not isinstance(kind, Messages):
                return None
            vectors = sorted({*range(kind.allocated), *kind.vectors})
            return MessageVectors(self.active is PciIrq.MSIX, vectors)

    def forget_messages(self) -> None:
        """The device's driver is gone: no message is in use, and none was."""
        self.messages_used = False

    def set_level(self, asserted: bool) -> None:
        """Assert or deassert INTx. Asserting a line that is not masked signals once, and masks it until the
        client unmasks it."""
        with self.lock:
            self.intx.set_level(asserted)

    def disable_intx(self, disabled: bool) -> None:
        """The command register's INTX_DISABLE was written, with or without a change."""
        with self.lock:
            self.intx.disable_by_command(disabled)

    def each_eventfd(self, call: Callable[[PciIrq, int, Eventfd], None]) -> None:
        """Call ``call`` with the index and the vector of each interrupt that is set up, and with its eventfd.
        Any thread; under :attr:`lock`."""
        with self.lock:
            for index, kind in self._kinds.items():
                for vector, eventfd in kind.eventfds():
                    call(index, vector, eventfd)

    def release(self) -> None:
        """The last client has closed the device: nothing is set up any more."""
        with self.lock:
            for kind in self._kinds.values():
                kind.tear_down()
            self.activate(None)

    def _resizable(self, index: PciIrq) -> bool:
        found = self._indexes[index] if index < len(self._indexes) else None
        return found is not None and not found.noresize
