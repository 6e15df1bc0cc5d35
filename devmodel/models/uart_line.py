# SPDX-License-Identifier: Apache-2.0
"""What a serial port's plug is connected to: the interface, and the loopback plug.

State: in each line, under the lock of the device that has the port.
Source: the wiring of a loopback plug for a PC's serial port (RTS to CTS, DTR to DSR and DCD).
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from devmodel.models.uart_regs import (
    LSR_BI,
    LSR_FE,
    MCR_DTR,
    MCR_RTS,
    MSR_CTS,
    MSR_DCD,
    MSR_DSR,
)

Character = tuple[int, int]
"""A byte as it is received, and the LSR_* bits of what went wrong with it."""

BREAK: Character = (0, LSR_BI | LSR_FE)
LINE_SIZE = 4096
"""Bytes that a line holds for a receiver without room, as many as a terminal's input queue."""


class SerialLine(ABC):
    """The other end of a port. A line never loses a byte: what the receiver has no room for waits, and what
    the line has no room for stays in the transmitter."""

    __slots__ = ()
    kind: ClassVar[str]
    """The word by which it is chosen."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Where a person finds it."""

    @abstractmethod
    def send(self, data: bytes) -> int:
        """Take as many bytes from the front of ``data`` as there is room for; returns how many."""

    @abstractmethod
    def receive(self, room: int) -> Sequence[Character]:
        """Give the receiver no more than ``room`` characters."""

    @abstractmethod
    def set_outputs(self, outputs: int) -> int:
        """The port's outputs (MCR_DTR and MCR_RTS) are these now; returns its inputs (MSR_CTS to MSR_DCD)."""

    def send_break(self) -> None:
        """The port begins a break."""
        return

    def discard(self) -> None:
        """The port has thrown away what it had received, or it was reset."""
        return

    def close(self) -> None:
        """Let go of everything; no other call follows."""
        return


class LoopbackPlug(SerialLine):
    """Sends every byte back, and DTR and RTS with them."""

    __slots__ = ("_waiting",)
    kind = "loopback"

    def __init__(self) -> None:
        self._waiting: deque[Character] = deque()

    @property
    def name(self) -> str:
        return self.kind

    def send(self, data: bytes) -> int:
        taken = data[: LINE_SIZE - len(self._waiting)]
        self._waiting.extend((byte, 0) for byte in taken)
        return len(taken)

    def receive(self, room: int) -> Sequence[Character]:
        return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]

    def set_outputs(self, outputs: int) -> int:
        return (MSR_CTS if outputs & MCR_RTS else 0) | (MSR_DSR | MSR_DCD if outputs & MCR_DTR else 0)

    def send_break(self) -> None:
        if len(self._waiting) < LINE_SIZE:  # a client may begin breaks without end
            self._waiting.append(BREAK)

    def discard(self) -> None:
        """What waits here has been received, as far as a plug goes that takes no time."""
        self._waiting.clear()
