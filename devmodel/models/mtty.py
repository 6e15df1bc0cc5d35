# SPDX-License-Identifier: Apache-2.0
"""mtty: the kernel's sample serial card, one or two 16550 ports that send every byte back to themselves.

State: in each device, under its lock. Source: the sample's README (identity and BARs), the PC16550D data
sheet, <linux/serial_reg.h> for the names of registers and bits.
"""

from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from devmodel.device import Option, PciDevice
from devmodel.pci import Bar, Identity
from devmodel.registers import Layout, Register, Registers

FIFO_SIZE = 16

IER_MASK = 0x0F
LCR_DLAB = 0x80
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_DCD = 0x10, 0x20, 0x80
FCR_ENABLE_FIFO, FCR_CLEAR_RCVR = 0x01, 0x02
IIR_NO_INT, IIR_FIFO_ENABLED = 0x01, 0xC0


class Port:
    """One 16550 in polled use: divisor latch, FIFO, line status; the transmitter feeds the receiver."""

    __slots__ = ("_divisor", "_enable", "_fifo", "_overrun", "_received", "region")

    def __init__(self) -> None:
        self.region = Registers(LAYOUT, self)
        self.reset()

    def reset(self) -> None:
        """Master reset: FIFO off and empty, divisor 1."""
        self._received: deque[int] = deque()
        self._divisor = 1
        self._enable = 0
        self._fifo = False
        self._overrun = False

    def read_data(self) -> int:
        """RBR, or DLL behind DLAB."""
        if self._latched:
            return self._divisor & 0xFF
        return self._received.popleft() if self._received else 0

    def write_data(self, value: int) -> None:
        """THR, or DLL behind DLAB."""
        if self._latched:
            self._divisor = (self._divisor & 0xFF00) | value
        elif len(self._received) < (FIFO_SIZE if self._fifo else 1):
            self._received.append(value)
        else:
            self._overrun = True

    def read_enable(self) -> int:
        """IER, or DLM behind DLAB."""
        return self._divisor >> 8 if self._latched else self._enable

    def write_enable(self, value: int) -> None:
        """IER, or DLM behind DLAB."""
        if self._latched:
            self._divisor = (self._divisor & 0xFF) | value << 8
        else:
            self._enable = value & IER_MASK

    def read_identification(self) -> int:
        """IIR: no interrupt is pending on a polled port."""
        return IIR_NO_INT | (IIR_FIFO_ENABLED if self._fifo else 0)

    def write_fifo_control(self, value: int) -> None:
        """FCR: switching the FIFO on or off empties it, as clearing it does."""
        enable = bool(value & FCR_ENABLE_FIFO)
        if enable is not self._fifo or value & FCR_CLEAR_RCVR:
            self._received.clear()
        self._fifo = enable

    def read_line_status(self) -> int:
        """LSR; reading it clears the overrun bit."""
        overrun, self._overrun = self._overrun, False
        ready = LSR_DR if self._received else 0
        return LSR_THRE | LSR_TEMT | ready | (LSR_OE if overrun else 0)

    @property
    def _latched(self) -> bool:
        return bool(self.region["LCR"] & LCR_DLAB)


LAYOUT = Layout(
    8,
    [
        Register(0, 1, "DATA", on_read=Port.read_data, on_write=Port.write_data),
        Register(1, 1, "IER", on_read=Port.read_enable, on_write=Port.write_enable),
        Register(2, 1, "IIR", on_read=Port.read_identification, on_write=Port.write_fifo_control),
        Register(3, 1, "LCR"),
        Register(4, 1, "MCR", rw_mask=0x1F),
        Register(5, 1, "LSR", rw_mask=0, on_read=Port.read_line_status),
        Register(6, 1, "MSR", MSR_CTS | MSR_DSR | MSR_DCD, rw_mask=0),
        Register(7, 1, "SCR"),
    ],
)


class Mtty(PciDevice):
    """A serial card with an 8-byte I/O BAR for each of its ``ports``, and INTA."""

    __slots__ = ("ports",)
    identity = Identity(0x4348, 0x3253, 0x4348, 0x3253, class_code=0x070002, revision=0x10, irq_pin=1)
    OPTIONS: ClassVar[Mapping[str, Option]] = {"ports": Option(1, 1, 2)}

    def bars(self) -> Mapping[int, Bar]:
        self.ports = [Port() for _ in range(self.options["ports"])]
        return {index: Bar(port.region, io=True) for index, port in enumerate(self.ports)}

    def after_reset(self) -> None:
        for port in self.ports:
            port.reset()
