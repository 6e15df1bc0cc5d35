# SPDX-License-Identifier: Apache-2.0
"""What the interrupt indexes of a device have in common: the data of SET_IRQS, and which index is active.

State: under ``Exclusive.lock``. Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS).
"""

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from devmodel.irq.eventfd import Eventfd, Watcher


class PciIrq(IntEnum):
    """Interrupt indexes of vfio-pci."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


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


def invalid(why: str) -> OSError:
    """EINVAL, and why."""
    return OSError(errno.EINVAL, why)


class Exclusive:
    """INTx, MSI and MSI-X exclude each other: one of them is :attr:`active`, or none.

    :attr:`vectors` are the eventfds of the active MSI or MSI-X, None with neither: what an interrupt of a
    device looks up, and nothing else.
    """

    __slots__ = ("active", "lock", "vectors")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.active: PciIrq | None = None
        self.vectors: Mapping[int, Eventfd] | None = None

    def activate(self, index: PciIrq | None, vectors: Mapping[int, Eventfd] | None = None) -> None:
        """``index`` is active now, by messages to ``vectors`` if it has any; None for no index."""
        self.active, self.vectors = index, vectors


class Line(ABC):
    """What serves one index, under ``Exclusive.lock``: methods named as the values of
    :class:`devmodel.irq.irqs.Action` are what it can do."""

    __slots__ = ()

    @abstractmethod
    def fire(self, vector: int) -> None:
        """The device's own trigger."""

    @abstractmethod
    def tear_down(self) -> None:
        """Let go of all eventfds."""
