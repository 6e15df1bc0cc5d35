# SPDX-License-Identifier: Apache-2.0
"""The interrupts of a device: what SET_IRQS sets up, and the one write to a client's eventfd that each of
them is.

State: under ``Irqs.lock``, which is taken after a device's lock. Any thread may trigger: nothing here waits,
and an eventfd calls nobody back, so a model may do it in a register hook.
Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS), the behaviour of vfio-pci's interrupt code.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from devmodel.irq.intx import Intx
from devmodel.irq.line import Data, Exclusive, Line, PciIrq
from devmodel.irq.messages import Messages, Notice


@dataclass(frozen=True, slots=True)
class IrqIndex:
    """One interrupt index: how many vectors, and what SET_IRQS may do with them."""

    count: int
    eventfd: bool = True
    maskable: bool = False
    automasked: bool = False
    noresize: bool = False


class Action(Enum):
    """What SET_IRQS does; the values are the names of the methods that do it."""

    MASK = "mask"
    UNMASK = "unmask"
    TRIGGER = "trigger"


class Irqs(Exclusive):
    """All interrupt indexes of one device."""

    __slots__ = ("_indexes", "_lines", "intx")

    def __init__(self, indexes: Sequence[IrqIndex | None]) -> None:
        """``indexes`` are in the order of :class:`PciIrq`, None for one that is not there."""
        super().__init__()
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
            if self.vectors is None:
                return False
            eventfd = self.vectors.get(vector)
            if eventfd is not None:
                eventfd.signal()
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
            self.activate(None)

    def _resizable(self, index: PciIrq) -> bool:
        found = self._indexes[index] if index < len(self._indexes) else None
        return found is not None and not found.noresize
