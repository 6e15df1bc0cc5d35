# SPDX-License-Identifier: Apache-2.0
"""The line at a serial port's plug: the interface, and the loopback plug.

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
"""A received byte, and the LSR_* bits of its errors."""

BREAK: Character = (0, LSR_BI | LSR_FE)
LINE_SIZE = 4096
"""The most bytes that a line holds for a receiver without room: the size of a terminal's input queue."""


class SerialLine(ABC):
    """The other end of a port. A line never loses a byte. Bytes wait in the line while the receiver has no
    room, and in the transmitter while the line has no room."""

    __slots__ = ()
    kind: ClassVar[str]
    """The word that chooses this kind of line."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The text that tells a person where the line is."""

    @abstractmethod
    def send(self, data: bytes) -> int:
        """Take as many bytes from the front of ``data`` as there is room for. Returns their number."""

    @abstractmethod
    def receive(self, room: int) -> Sequence[Character]:
        """Give the receiver no more than ``room`` characters."""

    @abstractmethod
    def set_outputs(self, outputs: int) -> int:
        """Set the port's outputs (MCR_DTR and MCR_RTS). Returns its inputs (MSR_CTS to MSR_DCD)."""

    def send_break(self) -> None:
        """The port begins a break."""
        return

    def discard(self) -> None:
        """The port has discarded its received characters, or was reset."""
        return

    def close(self) -> None:
        """Release all resources. No other call follows."""
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
        """Drop the waiting characters: a real plug takes no time, so the port would have received them."""
        self._waiting.clear()
