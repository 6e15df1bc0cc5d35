# SPDX-License-Identifier: Apache-2.0
"""The interrupts that a device on a bench sends, set up and recorded as a client of VFIO does it.

State: interrupts are set up on the bench's lane. Any thread of the device sends them, which adds to the
record under the lock of the device's interrupts. Source: <linux/vfio.h> (VFIO_DEVICE_SET_IRQS).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from devmodel.device.base import Device
from devmodel.irq.eventfd import Eventfd, Watcher
from devmodel.irq.kinds import PciIrq
from devmodel.vfio.flags import IrqSet
from devmodel.vfio.irqset import IrqData, IrqRequest, Lending, set_irqs
from vfsfuse.testing.errors import BenchError

_CARRIERS = (PciIrq.MSIX, PciIrq.MSI, PciIrq.INTX)
_NOTICES = (PciIrq.ERR, PciIrq.REQ)
_NO_DATA = IrqData(0, lambda count: b"", lambda count: ())


class Interrupt(NamedTuple):
    """An interrupt that came at virtual ``time``: its kind, and the vector of a message."""

    time: float
    kind: PciIrq
    vector: int

    def __str__(self) -> str:
        return f"{self.kind.name} {self.vector} at {self.time:g} s"


class _Recorder(Eventfd):
    """Stands for an eventfd of the client, with all that devices do with one: signal it, and close it."""

    __slots__ = ()

    def __init__(self, record: Callable[[], object]) -> None:
        self.fd = -1
        self.signal: Callable[[], object] = record

    def close(self) -> None:
        self.signal = _nothing


def _nothing() -> None:
    """The signal after the close."""


class Interrupts:
    """``bench.interrupts``: what the device has sent since the bench was made.

    A bench sets up MSI-X with all vectors if the device has it, else MSI, else INTx, and always ERR and REQ,
    which are notices to the program. :meth:`use` chooses.
    """

    def __init__(self, now: Callable[[], float], call: Callable[[Callable[[], None]], None]) -> None:
        """For :class:`vfsfuse.testing.bench.Bench`. ``call`` runs a function on the lane."""
        self._now, self._call = now, call
        self._device: Device | None = None
        self._watcher = Watcher()
        self.log: list[Interrupt] = []
        """All of them, in their order."""
        self._taken: dict[tuple[PciIrq, int], int] = {}

    def __str__(self) -> str:
        return ", ".join(map(str, self.log)) or "none"

    @property
    def kind(self) -> PciIrq | None:
        """Which of INTX, MSI and MSIX is set up, None for none."""
        return None if self._device is None else self._device.irq.active

    @property
    def asserted(self) -> bool:
        """Whether the device drives INTx. A level stays until the device deasserts it, whatever the client
        sets up."""
        return self._opened().irq.intx.asserted

    def count(self, vector: int = 0, kind: PciIrq | str | None = None) -> int:
        """How many interrupts have come by this vector. ``kind`` is that which is set up unless given:
        "INTX", "MSI", "MSIX", "ERR" or "REQ"."""
        wanted = self.kind_of(kind)
        return sum(each.kind is wanted and each.vector == vector for each in self.log)

    def clear(self) -> None:
        """Forget those that have come."""
        self.log.clear()
        self._taken.clear()

    def take(self, vector: int = 0, kind: PciIrq | str | None = None) -> Interrupt | None:
        """The first interrupt of this vector that was not taken before, None without one."""
        wanted = self.kind_of(kind)
        found = [each for each in self.log if each.kind is wanted and each.vector == vector]
        taken = self._taken.get((wanted, vector), 0)
        if taken >= len(found):
            return None
        self._taken[wanted, vector] = taken + 1
        return found[taken]

    def use(self, kind: PciIrq | str | None, vectors: int | None = None) -> None:
        """Set up "MSIX" or "MSI" with so many vectors (all unless given), "INTX", or with None none of
        them. What was set up before is torn down.

        Raises :class:`BenchError` for what the device does not have.
        """
        device = self._opened()
        if kind is None:
            self._call(self._tear_down)
            return
        index = self.kind_of(kind)
        most = device.irq.count(index)
        count = most if vectors is None else vectors
        if index not in _CARRIERS or not 0 < count <= most:
            raise BenchError(f"{device.name} has {most} vectors of {index.name}, not {count} to set up")

        def change() -> None:
            self._tear_down()
            self._set_up(index, count)

        self._call(change)

    def unmask(self) -> None:
        """Unmask INTx, which masks itself when it comes: the client has served it. It comes again if the
        device still asserts it."""
        request = IrqRequest(IrqSet.ACTION_UNMASK | IrqSet.DATA_NONE, PciIrq.INTX, 0, 1)
        self._call(
            lambda: set_irqs(self._opened(), request, _NO_DATA, self._lending(PciIrq.INTX), self._watcher)
        )

    def kind_of(self, kind: PciIrq | str | None) -> PciIrq:
        """The kind with this name, or that which is set up. Raises :class:`BenchError`."""
        if kind is None:
            active = self.kind
            if active is None:
                raise BenchError("no interrupts are set up (bench.interrupts.use sets them up)")
            return active
        try:
            return PciIrq[kind.upper()] if isinstance(kind, str) else PciIrq(kind)
        except (KeyError, ValueError):
            names = ", ".join(each.name for each in PciIrq)
            raise BenchError(f"{kind!r} is no kind of interrupt (there is {names})") from None

    # ---- on the lane ----

    def opened(self, device: Device, kind: PciIrq | str | None) -> None:
        """The client has opened the device: set up ``kind`` ("best" for what the device has, None for none),
        ERR and REQ."""
        self._device = device
        for notice in _NOTICES:
            if device.irq.count(notice):
                self._set_up(notice, 1)
        if kind == "best":
            kind = next((each for each in _CARRIERS if device.irq.count(each)), None)
        if kind is not None:
            index = self.kind_of(kind)
            if not device.irq.count(index):
                raise BenchError(f"{device.name} has no {index.name}")
            self._set_up(index, device.irq.count(index))

    def closed(self) -> None:
        """The client has closed the device."""
        self._device = None

    def _opened(self) -> Device:
        if self._device is None:
            raise BenchError("the client has closed the device (bench.open_device opens it)")
        return self._device

    def _set_up(self, index: PciIrq, count: int) -> None:
        request = IrqRequest(IrqSet.ACTION_TRIGGER | IrqSet.DATA_EVENTFD, index, 0, count)
        data = IrqData(4 * count, lambda count: b"", range)
        set_irqs(self._opened(), request, data, self._lending(index), self._watcher)

    def _tear_down(self) -> None:
        index = self.kind
        if index is not None:
            request = IrqRequest(IrqSet.ACTION_TRIGGER | IrqSet.DATA_NONE, index, 0, 0)
            set_irqs(self._opened(), request, _NO_DATA, self._lending(index), self._watcher)

    def _lending(self, index: PciIrq) -> Lending:
        @contextmanager
        def lend() -> Iterator[Callable[[int], Eventfd]]:
            yield lambda vector: _Recorder(lambda: self.log.append(Interrupt(self._now(), index, vector)))

        return lend
